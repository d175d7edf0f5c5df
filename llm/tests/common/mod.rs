//! What several test programs share: where real models are.

use std::path::PathBuf;

/// The file of a model, `NAME.gguf` in the folder that `AETHER_TEST_MODELS` names. When it
/// is not there, says so on standard error; the test then has nothing to check.
pub fn model(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("AETHER_TEST_MODELS");
    let path = folder.map(|f| PathBuf::from(f).join(format!("{name}.gguf")));
    let found = path.filter(|p| p.is_file());
    if found.is_none() {
        eprintln!("not checked: AETHER_TEST_MODELS holds no {name}.gguf");
    }
    found
}
