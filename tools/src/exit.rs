//! How a command ends: its exit code and the one paragraph that says why it failed.

use std::process::ExitCode;

/// Turns a command's outcome into an exit code; an error goes to standard error as one paragraph,
/// each cause after its effect.
pub fn report(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // The reader of a pipe has seen enough.
            let closed = error.chain().any(|cause| {
                cause
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
            });
            if closed {
                return ExitCode::SUCCESS;
            }
            crate::output::note(&paragraph(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error as it is shown. One of the verifier begins with its rule, `error[V31]: `, already.
pub fn paragraph(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    if text.starts_with("error[") { text } else { format!("error: {text}") }
}

/// Sends `tracing` events to standard error: warnings, or what `AETHER_LOG` asks for.
pub fn start_tracing() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("AETHER_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        // What cannot be written, as on a full disk, is lost: to say so there would panic.
        .log_internal_errors(false)
        .init();
}
