//! NVRTC by dlopen, and the kernels' sources.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use crate::card::card_sm;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

type Create =
    unsafe extern "C" fn(*mut usize, *const c_char, *const c_char, c_int, *const c_void, *const c_void) -> c_int;
type Compile = unsafe extern "C" fn(usize, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(usize, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(usize, *mut u8) -> c_int;

/// Source of a kernel: definitions before the files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    pub text: String,
    /// True if NVRTC may warn: the source was changed.
    changed: bool,
}

impl Source {
    /// Joins files below `src` of the program behind definitions.
    pub fn new(files: &[&str], definitions: &[(&str, u32)]) -> Self {
        let mut text: String = definitions.iter().map(|(name, value)| format!("#define {name} {value}\n")).collect();
        for file in files {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../src").join(file);
            text += &std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        Self { text, changed: false }
    }

    /// Changes the source; the old text must be there.
    pub fn replace(&self, old: &str, new: &str) -> Self {
        assert!(self.text.contains(old), "the source has no `{old}`");
        Self { text: self.text.replace(old, new), changed: true }
    }
}

/// Returns the PTX of a source for the card.
pub fn compile(source: &Source) -> Vec<u8> {
    static COMPILED: LazyLock<Mutex<HashMap<String, Vec<u8>>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    compiled.entry(source.text.clone()).or_insert_with(|| run_nvrtc(source)).clone()
}

fn run_nvrtc(source: &Source) -> Vec<u8> {
    let toolkit = std::env::var("CARD_TOOLKIT").expect("CARD_TOOLKIT names a folder made by toolkit.sh");
    let path = CString::new(format!("{toolkit}/lib/libnvrtc.so")).unwrap();
    // SAFETY: NVRTC's documented functions, with their documented types.
    unsafe {
        let library = dlopen(path.as_ptr(), 2);
        assert!(!library.is_null(), "{path:?} cannot be loaded");
        let find = |name: &CStr| {
            let found = dlsym(library, name.as_ptr());
            assert!(!found.is_null(), "{name:?} is missing");
            found
        };
        let create: Create = std::mem::transmute(find(c"nvrtcCreateProgram"));
        let compile: Compile = std::mem::transmute(find(c"nvrtcCompileProgram"));
        let text = CString::new(source.text.as_str()).unwrap();
        let mut program = 0;
        assert_eq!(
            create(&mut program, text.as_ptr(), c"kernel.cu".as_ptr(), 0, std::ptr::null(), std::ptr::null()),
            0
        );
        let sm = card_sm();
        let option = CString::new(format!("--gpu-architecture=sm_{sm}{}", if sm >= 90 { "a" } else { "" })).unwrap();
        let code = compile(program, 1, [option.as_ptr()].as_ptr());
        let read = |size: &CStr, text: &CStr| {
            let size = std::mem::transmute::<*mut c_void, Size>(find(size));
            let text = std::mem::transmute::<*mut c_void, Text>(find(text));
            let mut length = 0;
            assert_eq!(size(program, &mut length), 0);
            let mut bytes = vec![0; length];
            assert_eq!(text(program, bytes.as_mut_ptr()), 0);
            bytes.pop();
            bytes
        };
        let log = String::from_utf8_lossy(&read(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")).into_owned();
        assert!(code == 0 && (log.is_empty() || source.changed), "{log}");
        read(c"nvrtcGetPTXSize", c"nvrtcGetPTX")
    }
}
