//! What several test programs share: where real models are.

use std::path::PathBuf;

use aether_llm::hub::{self, Cache, Catalogue, DEFAULT_MODEL, PullOptions};

/// The file of the default model, pulled if the cache folder does not have it yet.
pub fn default_model() -> PathBuf {
    let catalogue = Catalogue::load(false).unwrap();
    hub::locate(None, &catalogue, &PullOptions::from_env(), &mut |_| {}).unwrap()
}

/// The file of another model of the catalogue, if the cache folder has it: the others are too
/// large to be pulled for a test. `aether pull --dev NAME` puts them there.
#[allow(dead_code)] // not every test program asks for others
pub fn cached_model(name: &str) -> Option<PathBuf> {
    assert_ne!(name, DEFAULT_MODEL, "the default model is always there");
    let catalogue = Catalogue::load(true).unwrap();
    let (cache, entry) = (Cache::open().unwrap(), catalogue.get(name).unwrap());
    cache.is_present(entry).then(|| cache.model_path(entry))
}
