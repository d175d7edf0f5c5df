//! Pipelines on disk, so that a driver compiles a shader once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The driver's cache of pipelines, in a file for each device and driver.
pub(crate) struct DiskCache {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    saved: AtomicUsize,
}

impl DiskCache {
    /// The cache of a device; `None` when there is no folder for it. A file that cannot be used is
    /// started anew.
    pub fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo) -> Option<DiskCache> {
        let key = wgpu::util::pipeline_cache_key(info)?;
        let path = folder()?.join(key);
        let data = std::fs::read(&path).ok();
        let saved = AtomicUsize::new(data.as_ref().map_or(0, Vec::len));
        // SAFETY: the bytes are what this function's counterpart wrote for the same device and
        // driver, which the name of the file says; the driver checks its own header, and with
        // `fallback` starts anew when it does not like them.
        let cache = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("aether"),
                data: data.as_deref(),
                fallback: true,
            })
        };
        Some(DiskCache { cache, path, saved })
    }

    pub fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes the cache when it grew. A failure costs the next process its time, no more.
    pub fn save(&self) {
        let Some(data) = self.cache.get_data() else { return };
        if self.saved.swap(data.len(), Ordering::Relaxed) == data.len() {
            return;
        }
        let partial = self.path.with_extension(format!("{}.part", std::process::id()));
        let written = self
            .path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&partial, &data))
            .and_then(|()| std::fs::rename(&partial, &self.path));
        if let Err(error) = written {
            tracing::debug!(%error, path = %self.path.display(), "pipelines were not saved");
        }
    }
}

/// `AETHER_HOME`, else the platform's cache folder.
fn folder() -> Option<PathBuf> {
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let base = home("AETHER_HOME")
        .or_else(|| home("XDG_CACHE_HOME").map(|dir| dir.join("aether")))
        .or_else(|| home("HOME").map(|dir| dir.join(".cache").join("aether")))?;
    Some(base.join("pipelines"))
}
