//! Aether beside candle and ndarray on the CPU.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml [-- FILTER... [--rounds N]]`
//!
//! Every case is computed by all who can, on the same inputs with as many threads as the machine
//! offers, turn by turn; the table shows the median of each and how many times the peer's time is
//! ours. Results are compared once before anything is timed, and the first tenth of a second is not
//! counted: clocks and threads are awake then. Ours is what a user runs: a module, the default
//! passes, the compiled program.

mod cases;
mod ours;

use std::time::{Duration, Instant};

/// One way to compute a case; gives the sum of the results' magnitudes for the comparison.
pub type Runner = Box<dyn FnMut() -> f64>;

/// A case and who computes it.
pub struct Case {
    pub name: &'static str,
    pub ours: Runner,
    pub candle: Runner,
    pub ndarray: Option<Runner>,
    /// Whether runners compute the magnitudes; off while timing.
    pub check: std::rc::Rc<std::cell::Cell<bool>>,
}

/// What is not counted at the beginning of a case.
const WARM_UP: Duration = Duration::from_millis(100);

/// A case of short runs goes on with its rounds for so long.
const LEAST: Duration = Duration::from_secs(1);

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut rounds = 15usize;
    let mut filters: Vec<String> = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rounds" => rounds = args.next().ok_or("--rounds needs a number")?.parse()?,
            _ => filters.push(arg),
        }
    }
    println!("| case | Aether ms | candle ms | ndarray ms | candle / Aether | ndarray / Aether |");
    println!("|---|---:|---:|---:|---:|---:|");
    for (name, make) in cases::ALL {
        if !filters.is_empty() && !filters.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        let mut case = make(name)?;
        compare(&mut case)?;
        let mut times: [Vec<f64>; 3] = Default::default();
        let begin = Instant::now();
        while times[0].len() < rounds || begin.elapsed() < LEAST {
            let counts = begin.elapsed() >= WARM_UP;
            let runners = [Some(&mut case.ours), Some(&mut case.candle), case.ndarray.as_mut()];
            for (runner, times) in runners.into_iter().zip(&mut times) {
                if let Some(run) = runner {
                    let start = Instant::now();
                    run();
                    if counts {
                        times.push(start.elapsed().as_secs_f64() * 1e3);
                    }
                }
            }
        }
        let [ours, candle, ndarray] =
            times.map(|t| if t.is_empty() { None } else { Some(median(t)) });
        let ours = ours.ok_or("no time was taken")?;
        let time = |t: Option<f64>| t.map_or("".to_owned(), |t| format!("{t:.3}"));
        let ratio = |t: Option<f64>| t.map_or("".to_owned(), |t| format!("{:.2}", t / ours));
        println!(
            "| {} | {ours:.3} | {} | {} | {} | {} |",
            case.name,
            time(candle),
            time(ndarray),
            ratio(candle),
            ratio(ndarray)
        );
    }
    Ok(())
}

/// All must compute the same.
fn compare(case: &mut Case) -> Result<(), Box<dyn std::error::Error>> {
    case.check.set(true);
    let want = (case.ours)();
    let peers = [("candle", Some(&mut case.candle)), ("ndarray", case.ndarray.as_mut())];
    for (peer, runner) in peers {
        if let Some(run) = runner {
            let found = run();
            if (found - want).abs() > 1e-3 * want.abs() {
                return Err(format!("{}: {peer} gives {found}, Aether {want}", case.name).into());
            }
        }
    }
    case.check.set(false);
    Ok(())
}
