//! Any JSON ends as an error or as a module that can be verified, printed and written again.

#![no_main]

use aether_ir::text::print_module;
use aether_ir::{Module, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(module) = serde_json::from_slice::<Module>(bytes) else { return };
    // Broken modules are printed too, by the messages about them.
    let printed = print_module(&module);
    if verify(&module).is_ok() {
        let json = serde_json::to_vec(&module).expect("a module is plain data");
        let again: Module = serde_json::from_slice(&json).expect("what was written reads back");
        assert_eq!(print_module(&again), printed);
    }
});
