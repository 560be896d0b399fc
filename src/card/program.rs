//! A CUDA C++ program as a kernel of `CubeCL`.

use std::sync::Arc;

use cubecl::cuda::CudaCompiler;
use cubecl::ir::{ElemType, Scope, StorageType, UIntKind};
use cubecl::prelude::*;
use cubecl::{CompilationError, Compiler, CubeTask};
use cubecl_cpp::shared::{Elem, Item, SharedMemory};

const COMMON: &str = include_str!("common.cu");

/// Alignment of dynamic shared memory, in bytes: that of the copy engine's swizzled tiles.
const SHARED_ALIGN: usize = 1024;

/// Source of a kernel with the sizes of its launches. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Program(Arc<Content>);

#[derive(Debug)]
struct Content {
    name: &'static str,
    source: String,
    /// Hash of the source. `CubeCL` keeps compiled kernels by their identifier, across processes.
    hash: [u8; 32],
    threads: CubeDim,
    shared_bytes: usize,
}

impl Program {
    /// Joins definitions, `common.cu` and other files to the kernel `name`. `threads` are those of a block.
    pub(crate) fn new(
        name: &'static str,
        files: &[&'static str],
        definitions: &[(&str, usize)],
        threads: u32,
        shared_bytes: usize,
    ) -> Self {
        let mut source = String::new();
        for (name, value) in definitions {
            source += &format!("#define {name} {value}\n");
        }
        source += COMMON;
        source.extend(files.iter().copied());
        let hash = *blake3::hash(source.as_bytes()).as_bytes();
        Self(Arc::new(Content { name, source, hash, threads: CubeDim::new_1d(threads), shared_bytes }))
    }
}

impl KernelMetadata for Program {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info((self.0.hash, self.0.shared_bytes)).cube_dim(self.0.threads)
    }

    fn address_type(&self) -> StorageType {
        address_type()
    }
}

impl CubeTask<CudaCompiler> for Program {
    fn compile(
        &self,
        compiler: &mut CudaCompiler,
        options: &<CudaCompiler as Compiler>::CompilationOptions,
        mode: ExecutionMode,
        address: StorageType,
    ) -> Result<CompiledKernel<CudaCompiler>, CompilationError> {
        // `CubeCL` compiles a kernel without a body; the program takes the place of its source.
        let empty = KernelTask::<CudaCompiler, Empty>::new(Empty(self.0.threads));
        let mut compiled = CubeTask::<CudaCompiler>::compile(&empty, compiler, options, mode, address)?;
        compiled.source.clone_from(&self.0.source);
        self.0.name.clone_into(&mut compiled.entrypoint_name);
        if let Some(repr) = compiled.repr.as_mut().filter(|_| self.0.shared_bytes > 0) {
            repr.body.shared_memories.push(SharedMemory::Array {
                index: 0,
                item: Item::scalar(Elem::U32, true),
                length: self.0.shared_bytes / 4,
                align: SHARED_ALIGN,
                offset: 0,
            });
        }
        Ok(compiled)
    }
}

/// Kernel without a body.
struct Empty(CubeDim);

impl KernelMetadata for Empty {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>()
    }

    fn address_type(&self) -> StorageType {
        address_type()
    }
}

impl CubeKernel for Empty {
    fn define(&self) -> KernelDefinition {
        KernelDefinition {
            buffers: Vec::new(),
            tensor_maps: Vec::new(),
            scalars: Vec::new(),
            cube_dim: self.0,
            body: Scope::root(false),
            options: KernelOptions::default(),
        }
    }
}

/// Returns the type with which generated kernels would count; these kernels count by themselves.
fn address_type() -> StorageType {
    StorageType::Scalar(ElemType::UInt(UIntKind::U32))
}
