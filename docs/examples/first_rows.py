"""Prints the first rows of a run folder: `python docs/examples/first_rows.py RUN`."""

import sys

import pyarrow.dataset as ds

rows = ds.dataset(f"{sys.argv[1]}/embeddings").head(5)
for row in rows.to_pylist():
    best = row["top_k"][0]
    vector = row["embedding"]
    print(f"{row['uri'].rsplit('/', 1)[-1]:24} {best['label']:10} {best['probability']:.3f}  ", end="")
    print(f"{len(vector)} numbers: {vector[0]:.3f}, {vector[1]:.3f}, {vector[2]:.3f}, …")
