#!/usr/bin/env bash
# Type-checks the feature `cuda` where there is neither a card nor NVIDIA's compiler: Rust is checked in full, and in the
# place of compiled kernels empty files stand, which is all that `cargo check` needs of them.
set -euo pipefail
cd "$(dirname "$0")/../../.."
shims="$(mktemp -d)"
trap 'rm -rf "$shims"' EXIT
mkdir "$shims/bin"

# Says which release it is, and leaves an empty file for each that it is asked for.
cat > "$shims/bin/nvcc" <<'NVCC'
#!/usr/bin/env bash
out="" folder="" sources=()
while [ $# -gt 0 ]; do
    case "$1" in
        --version) printf 'nvcc\n\n\nCuda compilation tools, release 12.8, V12.8.93\n'; exit ;;
        --list-gpu-code) echo sm_90; exit ;;
        -o) out="$2"; shift ;;
        --output-directory) folder="$2"; shift ;;
        *.cu) sources+=("$1") ;;
    esac
    shift
done
if [ -n "$out" ]; then : > "$out"; fi
if [ -n "$folder" ]; then
    for source in "${sources[@]}"; do : > "$folder/$(basename "${source%.cu}").ptx"; done
fi
NVCC

# candle-flash-attn clones NVIDIA's CUTLASS to compile with: there is nothing to compile.
commit="$(grep -o 'CUTLASS_COMMIT: &str = "[0-9a-f]*"' "$(cargo metadata --format-version 1 --features covey-inference/cuda \
    | python3 -c 'import json, sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "candle-flash-attn"))' \
    | xargs dirname)/build.rs" | cut -d'"' -f2)"
mkdir -p "$shims/home/git/checkouts/cutlass-${commit:0:16}/include"
cat > "$shims/bin/git" <<GIT
#!/usr/bin/env bash
[ "\$*" = "rev-parse HEAD" ] && echo "$commit"
GIT

chmod +x "$shims/bin/"*
export PATH="$shims/bin:$PATH" CUDAFORGE_HOME="$shims/home" CUDA_COMPUTE_CAP=90
# Apart from other builds: a later one with the real compiler must not find empty kernels.
CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/check-cuda" cargo clippy --release -p covey-inference --features cuda -- -D warnings
