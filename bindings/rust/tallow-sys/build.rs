//! Compiles the library from the C sources of this repository as its CMake build does: everything
//! once, the tile code once for each instruction set, the sources of the GPU kernels embedded. It
//! needs a C compiler and `ar`; `CC`, `CFLAGS` and `AR` name others than the system's.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

const FLAGS: &[&str] = &[
    "-std=c11",
    "-O3",
    "-DNDEBUG",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
];
const TILE_FLAGS: &[&str] = &["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"];

/// Instruction sets of x86-64, each with what it adds to the one before.
const LEVELS: &[(&str, &[&str])] = &[
    ("scalar", &[]),
    ("avx2", &["-mavx2", "-mfma", "-mf16c"]),
    (
        "avx512",
        &["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"],
    ),
    ("avx512bf16", &["-mavx512bf16"]),
];

struct Build {
    root: PathBuf,
    out: PathBuf,
    compiler: Vec<String>,
    x86: bool,
    openmp: Option<&'static str>, // the library to link
}

/// One run of the compiler.
struct Unit {
    source: PathBuf,
    object: PathBuf,
    flags: Vec<String>,
}

fn words(variable: &str, default: &str) -> Vec<String> {
    println!("cargo:rerun-if-env-changed={variable}");
    let value = env::var(variable).unwrap_or_else(|_| default.to_string());
    value.split_whitespace().map(String::from).collect()
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?}: {status}");
}

impl Build {
    fn new() -> Build {
        let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
        let mut compiler = words("CC", "cc");
        compiler.extend(words("CFLAGS", ""));
        Build {
            root: here.join("../../..").canonicalize().expect("the repository's root"),
            out: PathBuf::from(env::var_os("OUT_DIR").unwrap()),
            compiler,
            x86: env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64"),
            openmp: None,
        }
    }

    fn cc(&self) -> Command {
        let mut command = Command::new(&self.compiler[0]);
        command.args(&self.compiler[1..]);
        command
    }

    /// The OpenMP library that a program of this compiler finds by name, if there is one.
    fn find_openmp(&self) -> Option<&'static str> {
        let source = self.out.join("openmp.c");
        let object = self.out.join("openmp.o");
        let program = self.out.join("openmp");
        let text = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n";
        fs::write(&source, text).unwrap();
        let succeeds = |command: &mut Command| {
            let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
            quiet.status().map_or(false, |status| status.success())
        };
        if !succeeds(self.cc().arg("-fopenmp").arg("-c").arg(&source).arg("-o").arg(&object)) {
            return None;
        }
        ["gomp", "omp"].into_iter().find(|library| {
            succeeds(self.cc().arg(&object).arg(format!("-l{library}")).arg("-o").arg(&program))
        })
    }

    /// kernel_sources.c: a table of the files in the order of their paths, which kernel caches
    /// know the sources by.
    fn embed_kernels(&self) -> PathBuf {
        let mut files = list(&self.root.join("kernels"), &["cu", "cuh", "h"]);
        files.push(self.root.join("src/spec.def"));
        files.sort();
        let mut text = String::from("#include \"kernel_sources.h\"\n\n");
        let mut table = String::new();
        for (i, file) in files.iter().enumerate() {
            let name = file.file_name().unwrap().to_str().unwrap();
            write!(text, "static const char text_{i}[] = {{").unwrap();
            for byte in fs::read(file).unwrap() {
                write!(text, "{byte},").unwrap();
            }
            text.push_str("0};\n");
            writeln!(table, "    {{\"{name}\", text_{i}, sizeof text_{i} - 1}},").unwrap();
        }
        write!(text, "\nconst kernel_source tallow_kernel_sources[] = {{\n{table}}};\n").unwrap();
        writeln!(text, "const int tallow_kernel_source_count = {};", files.len()).unwrap();
        let path = self.out.join("kernel_sources.c");
        fs::write(&path, text).unwrap();
        path
    }

    fn unit(&self, source: PathBuf, name: &str, more: &[&str]) -> Unit {
        let mut flags: Vec<String> = FLAGS.iter().chain(more).map(|s| s.to_string()).collect();
        for folder in ["include", "src"] {
            flags.push(format!("-I{}", self.root.join(folder).display()));
        }
        if self.openmp.is_some() {
            flags.push("-fopenmp".into());
        }
        Unit { source, object: self.out.join(format!("{name}.o")), flags }
    }

    fn units(&self) -> Vec<Unit> {
        let mut units = Vec::new();
        let mut wider: Vec<&str> = TILE_FLAGS.to_vec();
        let levels = if self.x86 { LEVELS } else { &LEVELS[..1] };
        for (level, adds) in levels {
            wider.extend(*adds);
            let define = format!("-DLEVEL={level}");
            let mut flags = wider.clone();
            flags.push(&define);
            let source = self.root.join("src/cpu/attention.c");
            units.push(self.unit(source, &format!("tile_{level}"), &flags));
        }
        let mut sources = list(&self.root.join("src"), &["c"]);
        sources.push(self.embed_kernels());
        let x86: &[&str] = if self.x86 { &["-DTALLOW_X86"] } else { &[] };
        for source in sources {
            let name = source.file_stem().unwrap().to_str().unwrap().to_string();
            units.push(self.unit(source, &name, x86));
        }
        units
    }

    fn compile(&self, unit: &Unit) {
        let mut command = self.cc();
        command.args(&unit.flags).arg("-c").arg(&unit.source).arg("-o").arg(&unit.object);
        run(&mut command);
    }

    /// As many compilers at a time as cargo allows.
    fn compile_all(&self, units: &[Unit]) {
        let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
        let next = Mutex::new(units.iter());
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| loop {
                    let unit = next.lock().unwrap().next();
                    match unit {
                        Some(unit) => self.compile(unit),
                        None => break,
                    }
                });
            }
        });
    }

    fn archive(&self, units: &[Unit]) {
        let archive = self.out.join("libtallow.a");
        let _ = fs::remove_file(&archive); // else ar would add to it
        let ar = words("AR", "ar");
        let objects = units.iter().map(|unit| &unit.object);
        run(Command::new(&ar[0]).args(&ar[1..]).arg("crs").arg(&archive).args(objects));
    }
}

/// The files of a folder with one of these extensions.
fn list(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| {
        let extension = file.extension().and_then(|e| e.to_str());
        extension.map_or(false, |e| extensions.contains(&e))
    });
    files.sort();
    files
}

fn main() {
    let mut build = Build::new();
    build.openmp = build.find_openmp();
    let units = build.units();
    build.compile_all(&units);
    build.archive(&units);
    println!("cargo:rustc-link-search=native={}", build.out.display());
    println!("cargo:rustc-link-lib=static=tallow");
    for library in ["m", "dl", "pthread"].into_iter().chain(build.openmp) {
        println!("cargo:rustc-link-lib={library}");
    }
    println!("cargo:include={}", build.root.join("include").display());
    for folder in ["include", "src", "kernels"] {
        println!("cargo:rerun-if-changed={}", build.root.join(folder).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
}
