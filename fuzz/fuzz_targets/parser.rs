//! Any text ends as a module or as errors with a place in the text that can be shown.

#![no_main]

use aether_ir::diag::render;
use aether_ir::text::parse_module;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(diagnostics) = parse_module(text) {
        assert!(!diagnostics.is_empty(), "refused without a reason");
        for d in &diagnostics {
            let (start, end) = (d.span.start as usize, d.span.end as usize);
            assert!(start <= end && end <= text.len(), "{d} lies outside the text");
        }
        assert!(render(&diagnostics, text, "fuzz").contains('^'));
    }
});
