//! Validation of shaders by naga, before any driver sees them.

use naga::valid::{Capabilities, ValidationFlags, Validator};

use crate::error::CompileError;
use crate::kernel::Shader;

/// Parses and validates a shader.
///
/// # Errors
/// What naga says, with the place in the shader.
pub fn validate(shader: &Shader) -> Result<(), CompileError> {
    let failed = |text: String| CompileError::Shader(format!("{}: {text}", shader.name));
    // Conversions of half floats in words: every Vulkan driver has them.
    let mut capabilities = Capabilities::default() | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if shader.needs.f16 {
        capabilities |= Capabilities::SHADER_FLOAT16;
    }
    if shader.needs.subgroups {
        capabilities |= Capabilities::SUBGROUP | Capabilities::SUBGROUP_BARRIER;
    }
    if shader.needs.cooperative_matrix {
        capabilities |= Capabilities::COOPERATIVE_MATRIX;
    }
    let module = naga::front::wgsl::parse_str(&shader.wgsl)
        .map_err(|e| failed(e.emit_to_string(&shader.wgsl)))?;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator.validate(&module).map_err(|e| failed(e.emit_to_string(&shader.wgsl)))?;
    Ok(())
}
