pub mod cmd;
pub mod progress;
