//! What the verifier accepts, the printer writes so that it reads back as the same module.

#![no_main]

use aether_ir::diag::render;
use aether_ir::text::{parse_module, print_module, strip_spans};
use aether_ir::verify;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(mut module) = parse_module(text) else { return };
    if let Err(diagnostics) = verify(&module) {
        assert!(render(&diagnostics, text, "fuzz").contains('^'));
        return;
    }
    let printed = print_module(&module);
    let mut again = match parse_module(&printed) {
        Ok(again) => again,
        Err(d) => panic!("{}", render(&d, &printed, "printed")),
    };
    strip_spans(&mut module);
    strip_spans(&mut again);
    // Numbers that values lack a name for become their names only when printed.
    assert_eq!(print_module(&again), printed);
    assert_eq!(verify(&again), Ok(()));
});
