//! The Rust declarations beside the C header: a C program says where every field of the header's
//! structs lies, and the header's text names every constant and function.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::process::Command;

use tallow_sys::*;

fn include() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../include")
}

fn size_behind<T>(_: *const T) -> usize {
    std::mem::size_of::<T>()
}

/// "struct field offset size", a line for each field and one for the struct, by Rust and as
/// statements of C.
macro_rules! layouts {
    ($($name:ident { $($field:ident)* })*) => {{
        let (mut rust, mut c) = (String::new(), String::new());
        $(
            let value = MaybeUninit::<$name>::uninit();
            let mut end = 0;
            $(
                // SAFETY: only addresses are taken.
                let at = unsafe { std::ptr::addr_of!((*value.as_ptr()).$field) };
                let offset = at as usize - value.as_ptr() as usize;
                assert_eq!(offset, end, "{}.{} follows another field", stringify!($name),
                           stringify!($field));
                end = offset + size_behind(at);
                writeln!(rust, "{} {} {} {}", stringify!($name), stringify!($field), offset,
                         size_behind(at)).unwrap();
                writeln!(c, "FIELD({}, {});", stringify!($name), stringify!($field)).unwrap();
            )*
            assert_eq!(end, std::mem::size_of::<$name>(), "{}: fields are missing",
                       stringify!($name));
            writeln!(rust, "{} {}", stringify!($name), end).unwrap();
            writeln!(c, "printf(\"{0} %zu\\n\", sizeof({0}));", stringify!($name)).unwrap();
        )*
        (rust, c)
    }};
}

#[test]
fn structs_lie_as_in_c() {
    let (rust, statements) = layouts! {
        tallow_tensor { data shape strides dtype reserved }
        tallow_rotary_angles {
            rotary_dim theta inv_freq cos sin attention_factor pairing mrope mrope_sections
        }
        tallow_rotary_params {
            x out positions offset cu_seqlens rotary stream device threads pack
        }
        tallow_attention_params {
            q k v out lse cu_seqlens_q cu_seqlens_k seqused_k leftpad_k block_table
            cache_batch_idx max_seqlen_q max_seqlen_k alibi_slopes sinks softmax_scale softcap
            window_left window_right prefix_ranges mask dropout_p dropout_seed dropout_offset k_new
            v_new cu_seqlens_k_new rotary positions_q positions_k_new num_splits precision
            batch_invariant device threads stream workspace workspace_size pack
        }
        tallow_merge_params { out_a lse_a out_b lse_b out lse stream device threads pack }
    };
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (folder.join("layout.c"), folder.join("layout"));
    let text = format!(
        "#include <stdio.h>\n#include <tallow.h>\n\
         #define FIELD(s, f) printf(#s \" \" #f \" %zu %zu\\n\", offsetof(s, f), \
         sizeof(((s *)0)->f))\nint main(void) {{\n{statements}return 0;\n}}\n"
    );
    fs::write(&source, text).unwrap();
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut words = compiler.split_whitespace();
    let status = Command::new(words.next().unwrap())
        .args(words)
        .arg("-I")
        .arg(include())
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .status()
        .unwrap();
    assert!(status.success());
    let c = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
    assert_eq!(c, rust);
}

/// The words of a C text, split at everything that no name contains.
fn names(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect()
}

#[test]
fn constants_and_functions_are_those_of_the_header() {
    let header = fs::read_to_string(include().join("tallow.h")).unwrap();
    let rust = include_str!("../src/lib.rs");
    let (mut constants, mut functions) = (0, 0);
    let flat = header.split_whitespace().collect::<Vec<_>>().join(" ");
    for (at, _) in flat.match_indices(" = ") {
        let name = *names(&flat[..at]).last().unwrap();
        let value = names(&flat[at..])[0];
        if name.starts_with("TALLOW_") && value.parse::<i32>().is_ok() {
            let wanted = format!("pub const {name}: i32 = {value};");
            assert!(rust.contains(&wanted), "{wanted}");
            constants += 1;
        }
    }
    for declaration in flat.split("TALLOW_API ").skip(1) {
        let name = *names(declaration.split('(').next().unwrap()).last().unwrap();
        if name.starts_with("tallow_") {
            assert!(rust.contains(&format!("pub fn {name}(")), "{name}");
            functions += 1;
        }
    }
    assert_eq!(constants, rust.matches("pub const ").count());
    assert_eq!(functions, rust.matches("pub fn ").count());
    assert!(constants > 20 && functions > 8);
}

#[test]
fn the_library_is_linked() {
    // SAFETY: takes nothing.
    assert!(unsafe { tallow_version() } >= 1000);
}
