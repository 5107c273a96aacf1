"""`make bench`: every benchmark in turn, each in a process of its own."""

import subprocess
import sys

BENCHMARKS = ("decode", "write", "one_pass", "network", "precision", "embed", "memory", "index", "search")

for name in BENCHMARKS:
    print(f"\n== {name}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True, stderr=subprocess.DEVNULL)
