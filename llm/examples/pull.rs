//! Downloads a model of the catalogue into the cache and prints its path.
//!
//!     cargo run -p aether-llm --example pull -- gemma3-270m

use std::time::Instant;

use aether_llm::hub::{self, Catalogue, Progress, PullOptions, bytes};

fn main() -> Result<(), hub::HubError> {
    let name = std::env::args().nth(1);
    let catalogue = Catalogue::load(true)?;
    let begin = Instant::now();
    let mut next = 0;
    let mut progress = |news: Progress| match news {
        Progress::Started { total } => eprintln!("{} to get", bytes(total)),
        Progress::Advanced { done, total } => {
            if done >= next {
                next = done + total / 20;
                eprintln!("{} of {}", bytes(done), bytes(total));
            }
        }
        Progress::Message(text) => eprintln!("{text}"),
        Progress::Verifying => eprintln!("verifying"),
    };
    let path = hub::locate(name.as_deref(), &catalogue, &PullOptions::from_env(), &mut progress)?;
    eprintln!("{:.1} s", begin.elapsed().as_secs_f64());
    println!("{}", path.display());
    Ok(())
}
