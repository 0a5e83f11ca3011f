"""Measure Arraylift against its goals, beside other programs, on the same disks and machine.

python -m benchmarks            the comparison: docs/performance.md
python -m benchmarks kernels    what each stage costs by itself
python -m benchmarks disks      make the disks only
"""
