# shellcheck shell=bash
# XLA's flags for trainings on several GPUs, so that collectives run while the GPUs compute. Scripts `source` this file;
# what XLA_FLAGS already says comes last and wins. docs/gpu.md explains each flag. No GPU has measured them here.
#
# Sources: [JAX] docs.jax.dev/en/latest/gpu_performance_tips.html
#          [NVIDIA] docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance

xla_gpu_flags=(
  # Starts collectives early and ends them late [JAX, NVIDIA; set in NVIDIA's JAX images].
  --xla_gpu_enable_latency_hiding_scheduler=true
  # Collectives of FSDP in the loop over layers run during the layer before or after [NVIDIA].
  --xla_gpu_enable_pipelined_all_gather=true
  --xla_gpu_enable_pipelined_reduce_scatter=true
  --xla_gpu_enable_pipelined_all_reduce=true
  # Unrolls that loop once, so that the pipelined collectives need no copies [NVIDIA].
  --xla_gpu_enable_while_loop_double_buffering=true
  # One collective for a layer's parameters: 128 MiB hold the 67 MB of a 430M stage's layer in float32 [JAX].
  --xla_gpu_all_gather_combine_threshold_bytes=134217728
  --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
  --xla_gpu_all_reduce_combine_threshold_bytes=134217728
)

# with_xla_gpu_flags: prints the flags, and those of XLA_FLAGS after them.
with_xla_gpu_flags() {
  printf '%s' "${xla_gpu_flags[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
}
