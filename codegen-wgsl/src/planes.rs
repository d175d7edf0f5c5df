pub fn pack(ty: &aether_ir::TensorType, raw: &[u8]) -> Result<Vec<u8>, String> {
    let _ = raw;
    Err(format!("{ty}"))
}
