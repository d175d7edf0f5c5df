//! Write a tensor computation once; Aether schedules, fuses and runs it.
//!
//! This package is the facade: the crates behind it own the work. [`ir`] is the SSA form that
//! everything runs through, [`passes`] transform it, [`codegen_cpu`] makes it executable,
//! [`runtime`] runs it, and [`llm`] builds it from model files.
//!
//! ```
//! use aether::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let g = Graph::new();
//! let x = g.tensor(vec![1.0, 2.0, 3.0, 4.0], Shape::new(vec![2, 2]));
//! let w = g.tensor(vec![2.0, 0.0, 0.0, 2.0], Shape::new(vec![2, 2]));
//! let y = x.matmul(w).softmax().sum_all();
//! let grads = y.backward()?;
//! let dx = grads[&x.id()].run(Device::Cpu)?;
//! # assert!((y.run(Device::Cpu)?.item::<f32>()? - 2.0).abs() < 1e-6);
//! # assert!(dx.to_vec::<f32>()?.iter().all(|d| d.abs() < 1e-6));
//! # Ok(())
//! # }
//! ```
//!
//! Each row of a softmax sums to 1 whatever `x` is, so `y` is 2 and its gradient is zero.
//!
//! Nothing is computed while the lines are read: they build a module of the IR, which `run` takes
//! through the passes and the code generator. `println!("{}", y.to_text()?)` shows it, and what it
//! shows can be edited and run as it stands:
//!
//! ```
//! use aether::prelude::*;
//!
//! let source = "module @demo {
//!   func @main(%x: tensor<2x2xf32>) -> tensor<2xf32> {
//!     %0 = softmax %x {axis = -1} : tensor<2x2xf32>
//!     %1 = reduce_sum %0 {axes = [1]} : tensor<2xf32>
//!     return %1
//!   }
//! }";
//! let module = parse_module(source).map_err(|_| "does not parse")?;
//! let x = aether::ir::Tensor::from_f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0])?;
//! let results = run_module(&module, "main", vec![x])?;
//! assert!(results[0].to_f32_vec()?.iter().all(|v| (v - 1.0).abs() < 1e-6));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use aether_codegen_cpu as codegen_cpu;
pub use aether_ir as ir;
pub use aether_llm as llm;
pub use aether_passes as passes;
pub use aether_runtime as runtime;

/// What most programs need.
pub mod prelude {
    pub use aether_ir::text::{parse_module, print_module};
    pub use aether_ir::{DType, Dim, Module, Shape, TensorType};
    pub use aether_runtime::graph::*;
    pub use aether_runtime::{Executable, Files, Options, Session, run_module};
}
