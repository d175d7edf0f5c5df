//! Plan files: they run as the module they were made of, elsewhere they are refused, and no change
//! to their bytes does more than that.

use std::sync::Arc;

use aether_ir::{Tensor, parse_and_verify};
use aether_runtime::{
    Files, Isa, Options, Prepared, Recompile, RuntimeError, SavedError, run_executable,
};
use sha2::{Digest, Sha256};

const SOURCE: &str = "module @m {
  sym s in 1..=8
  const @w : tensor<4x2xf32> = dense<[1.0, -2.0, 0.5, 4.0, 0.25, 1.0, 2.0, -1.0]>
  func @layer(%x: tensor<[s]x2xf32>, %w: tensor<4x2xf32>) -> tensor<[s]x4xf32> {
    %0 = matmul %x, %w {transpose_b = true} : tensor<[s]x4xf32>
    %1 = relu %0 : tensor<[s]x4xf32>
    %2 = softmax %1 {axis = -1} : tensor<[s]x4xf32>
    return %2
  }
  func @main(%x: tensor<[s]x2xf32>, %c: tensor<[s]x4xf32>) -> (tensor<[s]x4xf32>, tensor<[s]xf32>) {
    %w = constant @w : tensor<4x2xf32>
    %0 = call @layer %x, %w : tensor<[s]x4xf32>
    %1 = add %0, %c : tensor<[s]x4xf32>
    %2 = reduce_sum %1 {axes = [1]} : tensor<[s]xf32>
    return %1, %2
  }
}
";

fn options() -> Options {
    Options { threads: 1, isa: Some(Isa::Scalar), verify: false, ..Options::default() }
}

fn prepared() -> Prepared {
    Prepared::new(parse_and_verify(SOURCE).unwrap(), &Files::new(), &options()).unwrap()
}

fn read(bytes: &[u8], opts: &Options, recompile: Recompile) -> Result<Prepared, SavedError> {
    Prepared::from_bytes(bytes, &Files::new(), opts, recompile)
}

fn try_results(prepared: Prepared) -> Result<Vec<Tensor>, RuntimeError> {
    let x = Tensor::from_f32(&[3, 2], &[1.0, 2.0, -1.0, 0.5, 0.0, 3.0]).unwrap();
    let c = Tensor::from_f32(&[3, 4], &[0.5; 12]).unwrap();
    run_executable(&Arc::new(prepared.load(&Files::new())?), vec![x, c])
}

fn results(prepared: Prepared) -> Vec<Tensor> {
    try_results(prepared).unwrap()
}

/// The same file with another body and the digest that belongs to it.
fn signed(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let at = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).unwrap().0 + 1;
    let mut body = bytes[at..].to_vec();
    change(&mut body);
    let digest: String = Sha256::digest(&body).iter().map(|b| format!("{b:02x}")).collect();
    let mut all = format!("aether-plan 1\nsha256 {digest}\n").into_bytes();
    all.extend(body);
    all
}

fn edited(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    signed(bytes, |body| {
        let text = String::from_utf8(std::mem::take(body)).unwrap();
        assert!(text.contains(from), "{from} is not in the file");
        *body = text.replacen(from, to, 1).into_bytes();
    })
}

#[test]
fn a_saved_plan_runs_as_the_module_it_was_made_of() {
    let bytes = prepared().to_bytes(&Files::new()).unwrap();
    let again = read(&bytes, &options(), Recompile::No).unwrap();
    assert_eq!(again.to_bytes(&Files::new()).unwrap(), bytes);
    assert_eq!(results(again), results(prepared()));
}

#[test]
fn a_plan_made_elsewhere_is_refused_or_compiled_again() {
    let bytes = prepared().to_bytes(&Files::new()).unwrap();
    let version = format!("\"aether\":\"{}\"", env!("CARGO_PKG_VERSION"));
    let arch = format!("\"arch\":\"{}\"", std::env::consts::ARCH);
    let threads = Options { threads: 2, ..options() };
    let table: [(Vec<u8>, Options, &str); 4] = [
        (edited(&bytes, &version, "\"aether\":\"0.0.1\""), options(), "version is"),
        (edited(&bytes, &arch, "\"arch\":\"z80\""), options(), "made for z80"),
        (edited(&bytes, "\"isa\":\"scalar\"", "\"isa\":\"avx9\""), options(), "made for avx9"),
        (bytes.clone(), threads, "number of threads is 2, the plan was made for 1"),
    ];
    for (bytes, opts, message) in table {
        let e = read(&bytes, &opts, Recompile::No).err().unwrap();
        assert!(matches!(e, SavedError::Elsewhere(_)), "{e}");
        let text = e.to_string();
        assert!(text.contains(message) && text.contains("--recompile"), "{text}");
        let again = read(&bytes, &opts, Recompile::Yes).unwrap();
        assert_eq!(results(again), results(prepared()));
    }
}

#[test]
fn what_is_damaged_is_said() {
    let bytes = prepared().to_bytes(&Files::new()).unwrap();
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() = b' ';
    let next = [b"aether-plan 2\n", &bytes[14..]].concat();
    let huge = "\"frame_bytes\":18446744073709551615";
    let frame = {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let at = text.find("\"frame_bytes\":").unwrap();
        let end = at + text[at..].find(',').unwrap();
        text[at..end].to_owned()
    };
    let table: [(Vec<u8>, &str); 8] = [
        (b"module @m {\n}\n".to_vec(), "no plan file"),
        (bytes[..20].to_vec(), "damaged"),
        (flipped, "digest"),
        (next, "format is 2"),
        (edited(&bytes, "tensor<4x2xf32>", "tensor<4x3xf32>"), "not valid"),
        (edited(&bytes, "\"entry\":\"main\"", "\"entry\":\"other\""), "lacks the function"),
        (edited(&bytes, &frame, huge), "too great"),
        (edited(&bytes, "{\"param\":0}", "{\"alias\":0}"), "not sound"),
    ];
    for (bytes, message) in table {
        let e = read(&bytes, &options(), Recompile::No).err().unwrap().to_string();
        assert!(e.contains(message), "expected `{message}` in `{e}`");
    }
}

/// Random edits behind a digest that fits, most of them of the numbers in the plan: each is
/// refused, or runs and gives the right numbers (an edit may change nothing that matters, or a
/// constant or attribute of the module, which is a module like any other).
#[test]
fn no_edit_of_a_plan_corrupts_memory() {
    let bytes = prepared().to_bytes(&Files::new()).unwrap();
    let module_at = String::from_utf8(bytes.clone()).unwrap().find("\nmodule @").unwrap();
    let expected = results(prepared());
    let mut rng = fastrand::Rng::with_seed(6);
    let (mut refused, mut ran) = (0, 0);
    for _ in 0..2000 {
        let head = rng.u8(..) < 224;
        let mutated = signed(&bytes, |body| {
            let head_len = module_at - (bytes.len() - body.len());
            for _ in 0..rng.usize(1..=3) {
                let range = if head { 0..head_len } else { head_len..body.len() };
                let digits: Vec<usize> = range.filter(|&i| body[i].is_ascii_digit()).collect();
                let at = digits[rng.usize(..digits.len())];
                match rng.u8(..4) {
                    0 => body[at] = b'0' + rng.u8(..10),
                    1 => body.insert(at, b'1' + rng.u8(..9)),
                    2 => drop(body.remove(at)),
                    _ => body[at] = rng.u8(b' '..127),
                }
            }
        });
        match read(&mutated, &options(), Recompile::No) {
            Err(_) => refused += 1,
            Ok(prepared) => {
                ran += 1;
                // A frame of a terabyte is sound, but cannot be had.
                if head && let Ok(found) = try_results(prepared) {
                    assert_eq!(found, expected);
                }
            }
        }
    }
    assert!(refused > 1000 && ran > 5, "{refused} refused, {ran} ran");
}
