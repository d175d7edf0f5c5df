//! Whatever a chat template does, it ends in bounded time and memory. The allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aether_llm::chat::{ChatError, Message, RenderOptions, Template};
use serde_json::json;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: all is left to the system's allocator; the counters are beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One at a time: the peak is of all threads.
static ALONE: Mutex<()> = Mutex::new(());

/// Most bytes in memory at a time: what values may take, and room for what is being made.
const MOST_LIVE: usize = 768 << 20;
/// Longest time, in a build without optimisation on a busy machine.
const MOST_TIME: Duration = Duration::from_secs(40);

fn render(source: &str, messages: serde_json::Value) -> Result<String, ChatError> {
    let template = Template::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned())?;
    template.render(&Message::parse_list(messages)?, &RenderOptions::default())
}

/// What the template ends with, within the limits.
fn ends(source: &str) -> Result<String, ChatError> {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let start = Instant::now();
    let result = render(source, json!([{ "role": "user", "content": "Hi" }]));
    let (time, peak) = (start.elapsed(), PEAK.load(Ordering::Relaxed) - before);
    let shown: String = source.chars().take(90).collect();
    println!("{:7.1} MiB {time:8.2?} {shown}", peak as f64 / f64::from(1 << 20));
    assert!(peak < MOST_LIVE, "{peak} bytes: {shown}");
    assert!(time < MOST_TIME, "{time:?}: {shown}");
    result
}

fn refused(source: &str, message: &str) {
    let shown: String = source.chars().take(300).collect();
    let error = ends(source).expect_err(&shown).to_string();
    assert!(error.contains(message), "{shown}: {error}");
}

const TEXT: &str = "a text of more than 33554432 bytes";
const PRINTED: &str = "prints more than 134217728 bytes";
const VALUES: &str = "values of more than 536870912 bytes";
const WEIGHT: &str = "a value of more than 33554432 bytes";

#[test]
fn texts_do_not_grow_without_bound() {
    let doubled = |step: &str| {
        format!(
            "{{% set ns = namespace(x='0123456789') %}}{{% for i in range(60) %}}\
             {{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x | length }}}}"
        )
    };
    for step in [
        "ns.x ~ ns.x",
        "ns.x + ns.x",
        "ns.x * 2",
        "2 * ns.x",
        "[ns.x, ns.x] | join",
        "[ns.x, ns.x] | join('-')",
        "'-'.join([ns.x, ns.x])",
        "ns.x | replace('0', '01234567890')",
        "ns.x.replace('0', '01234567890')",
        "ns.x.replace('', '--')",
        "'%s%s' | format(ns.x, ns.x)",
        "'{0}{0}'.format(ns.x)",
        "(ns.x ~ '\\n') | indent(4000, true) ~ ns.x",
    ] {
        refused(&doubled(step), TEXT);
    }
    for step in ["[ns.x, ns.x] | string", "[ns.x, ns.x] | tojson", "[ns.x, ns.x] | pprint"] {
        let error = ends(&doubled(step)).expect_err(step).to_string();
        assert!(error.contains(TEXT) || error.contains(WEIGHT), "{step}: {error}");
    }
    let table = [
        ("{{ 'x' * 10**9 }}", TEXT),
        ("{{ 'x' * 10**18 * 10**18 }}", TEXT),
        ("{% if false %}{{ 'x' * 10**8 }}{% endif %}{{ 'x' * 10**8 }}", TEXT),
        ("{{ 'x' | indent(10**9, true) }}", TEXT),
        ("{{ 'x' | indent(width=10**9, first=true) }}", TEXT),
        ("{{ '%1000000000d' | format(1) }}", TEXT),
        ("{{ '%*d' | format(1000000000, 1) }}", TEXT),
        ("{{ '%.1000000000f' | format(1.5) }}", TEXT),
        ("{{ '{:1000000000}'.format(1) }}", TEXT),
        ("{{ '{:{}}'.format(1, 1000000000) }}", TEXT),
        ("{{ [1] | batch(10**9, 0) }}", TEXT),
        ("{{ [1] | slice(10**9, 0) }}", TEXT),
        ("{{ 'x' | center(10**9) }}", "filter center is unknown"),
        ("{{ 'abc'.count('') }}", "empty"),
        ("{{ 'abc'.split('') }}", "empty"),
        ("{{ ('a' * 10**7).strip('b' * 10**7 ~ 'a') }}", "to strip"),
        (
            "{% autoescape true %}{{ '<' * 10**7 }}{{ '<' * 10**7 }}{{ '&' * 10**7 }}{% endautoescape %}",
            "",
        ),
    ];
    for (source, message) in table {
        refused(source, message);
    }
}

#[test]
fn what_is_printed_or_kept_is_bounded() {
    let raw = "x".repeat(1 << 16);
    let lines = "x\n".repeat(1 << 15);
    let table = [
        // Raw text in nested loops, into the prompt and into a variable.
        format!(
            "{{% for a in range(9999) %}}{{% for b in range(9999) %}}{raw}{{% endfor %}}{{% endfor %}}"
        ),
        format!(
            "{{% set x %}}{{% for a in range(9999) %}}{{% for b in range(9999) %}}{raw}\
             {{% endfor %}}{{% endfor %}}{{% endset %}}"
        ),
        format!(
            "{{% macro f() %}}{raw}{{% endmacro %}}{{% for a in range(99999) %}}{{{{ f() }}}}{{% endfor %}}"
        ),
        format!(
            "{{% filter upper %}}{{% for a in range(99999) %}}{raw}{{% endfor %}}{{% endfilter %}}"
        ),
        "{% for a in range(99999) %}{{ '0123456789' * 2000 }}{% endfor %}".to_owned(),
    ];
    for source in &table {
        refused(source, PRINTED);
    }
    let table = [
        // Texts that are each small enough, kept.
        format!(
            "{{% set ns = namespace(x=[]) %}}{{% for a in range(9999) %}}\
             {{% set ns.x = ns.x + [('{raw}' ~ a)] %}}{{% endfor %}}"
        ),
        format!(
            "{{% set ns = namespace(x=[]) %}}{{% for a in range(9999) %}}\
             {{% set ns.x = ns.x + ['{raw}'.split('x')] %}}{{% endfor %}}"
        ),
        format!(
            "{{% for a in range(99999) %}}{{% set x = '{lines}'.splitlines() %}}{{% endfor %}}"
        ),
        format!("{{% for a in range(99999) %}}{{% set x = '{raw}' | list %}}{{% endfor %}}"),
        format!("{{% for a in range(99999) %}}{{% set x = '{raw}'[1:] %}}{{% endfor %}}"),
    ];
    for source in &table {
        refused(source, VALUES);
    }
    // The prompt alone.
    refused(&format!("{{% for a in range(600) %}}{raw}{{% endfor %}}"), TEXT);
    // Constants that would be folded.
    refused(&"{{ 'x' * 10**8 }}".repeat(20_000), TEXT);
}

#[test]
fn lists_do_not_grow_without_bound() {
    let repeated = |step: &str, times: usize| {
        format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range({times}) %}}\
             {{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x | length }}}}"
        )
    };
    refused(&repeated("ns.x + ns.x", 60), VALUES);
    refused(&repeated("ns.x * 2", 60), VALUES);
    refused(&repeated("[ns.x, ns.x]", 60), WEIGHT);
    refused(&repeated("{'a': ns.x, 'b': ns.x}", 60), WEIGHT);
    refused(&repeated("dict(a=ns.x, b=ns.x)", 60), WEIGHT);
    refused(&repeated("[ns.x]", 9999), "nested deeper");
    refused(&repeated("{'a': ns.x}", 9999), "nested deeper");
    refused(&repeated("ns.x | batch(1)", 9999), "nested deeper");
    refused(&repeated("[ns.x] | map('list') | list | batch(2)", 9999), "nested deeper");
    refused("{% set x = range(90000) * 10**9 %}", VALUES);
    refused("{{ (range(90000) * 10**9) | length }}", VALUES);
    refused("{{ range(10**9) }}", "range");
    // Views of views are lists at once, and do not pile up.
    assert_eq!(ends(&repeated("ns.x | reverse", 9999)).unwrap(), "1");
    assert_eq!(ends(&repeated("ns.x[0:]", 9999)).unwrap(), "1");
    assert_eq!(ends(&repeated("ns.x + []", 9999)).unwrap(), "1");
    // Nothing contains itself.
    for source in [
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.a = {'b': ns} %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.a = dict(b=ns) %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns = namespace(a=ns) %}{{ ns }}",
        "{% set ns = namespace() %}{% macro f() %}{{ ns }}{% endmacro %}{% set ns.a = f %}",
        "{% set ns = namespace() %}{% for i in [1] %}{% set ns.a = loop %}{% endfor %}",
    ] {
        refused(source, "cannot be kept in");
    }
}

#[test]
fn deep_and_slow_templates_end() {
    for chain in ["1 + ", "1 ~ ", "not ", "-", "1 == ", "1 if 1 else ", "1 and "] {
        refused(&format!("{{{{ {}1 }}}}", chain.repeat(150_000)), "");
    }
    for chain in ["|upper", ".a", "[0]", "()", "[1:]", " is defined"] {
        refused(&format!("{{{{ x{} }}}}", chain.repeat(100_000)), "");
    }
    refused(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(80_000)), "elif");
    refused(&"{% if x %}".repeat(100_000), "");
    refused(&"{% for x in y %}".repeat(60_000), "");
    refused(&format!("{{{{ {} }}}}", "(".repeat(100_000)), "");
    refused(&format!("{{{{ {} }}}}", "[".repeat(100_000)), "");
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "");
    refused("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "fuel");
    let slow = "{% set x = ('ab' * 10**7) %}{% set y = x ~ 'b' %}{% for a in range(99999) %}\
                {% if x == y %}{% endif %}{{ x in y }}{{ y.count('ba') }}{% endfor %}";
    refused(slow, "more than 10 seconds");
    let deep = "{% set ns = namespace(x=['0123456789']) %}{% for i in range(18) %}\
                {% set ns.x = [ns.x, ns.x] %}{% endfor %}{% for a in range(99999) %}\
                {% if ns.x == ns.x + [] %}{% endif %}{% endfor %}";
    let error = ends(deep).unwrap_err().to_string();
    assert!(error.contains("more than 10 seconds") || error.contains(WEIGHT), "{error}");
}

#[test]
fn long_conversations_fit() {
    let source = "{{ bos_token }}{% set ns = namespace(out='') %}{% for m in messages %}\
        {% if loop.index0 > 0 and messages[loop.index0 - 1].role == m.role %}\
        {{ raise_exception('roles') }}{% endif %}\
        {% if m.role in ['user', 'assistant'] and m['content'] is string %}\
        {% set ns.out = ns.out + '<|' ~ m.role ~ '|>' + (m.content | trim) + '\\n' %}{% endif %}\
        {% set users = messages | selectattr('role', 'equalto', 'user') | list %}\
        {% if (users | length) == 0 %}{{ raise_exception('no users') }}{% endif %}\
        {% endfor %}{{ ns.out }}{% if add_generation_prompt %}<|assistant|>{% endif %}";
    let messages: Vec<_> = (0..200)
        .map(|i| {
            let role = if i % 2 == 0 { "user" } else { "assistant" };
            json!({ "role": role, "content": format!("{i} {}", "word ".repeat(500)) })
        })
        .collect();
    let start = Instant::now();
    let text = render(source, json!(messages)).unwrap();
    println!("{} bytes in {:?}", text.len(), start.elapsed());
    assert_eq!(text.matches("<|assistant|>").count(), 101);
    assert!(text.starts_with("<s><|user|>0 word word"), "{}", &text[..40]);
}
