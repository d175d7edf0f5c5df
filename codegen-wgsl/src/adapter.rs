//! What a GPU offers, as far as kernels are shaped by it.

/// Features and limits of an adapter. Kernels use what is here and have another way where it is
/// not, so that clearing a field forces the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Adapter {
    /// 16-bit floats in shaders.
    pub f16: bool,
    /// Lanes of a subgroup, when shaders may use subgroup operations and every subgroup has the
    /// same number of lanes.
    pub subgroup: Option<u32>,
    /// Products of 16x16 matrices of f16 with f32 sums.
    pub cooperative_matrix: bool,
    /// Most invocations of a workgroup.
    pub workgroup_invocations: u32,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Most workgroups along one axis of a dispatch.
    pub workgroups_per_axis: u32,
    /// Most bytes of a storage binding.
    pub binding_bytes: u64,
    /// Most storage buffers that one shader reads and writes.
    pub storage_buffers: u32,
}

impl Adapter {
    /// What WebGPU guarantees everywhere.
    pub const LEAST: Adapter = Adapter {
        f16: false,
        subgroup: None,
        cooperative_matrix: false,
        workgroup_invocations: 256,
        workgroup_bytes: 16 << 10,
        workgroups_per_axis: 65535,
        binding_bytes: 128 << 20,
        storage_buffers: 8,
    };
}
