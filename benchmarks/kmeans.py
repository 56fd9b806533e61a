"""K-means against scikit-learn and faiss: seconds, and inertia on the same points.

    python benchmarks/kmeans.py [--points 1000000] [--dim 256] [--centroids 256] [--methods ours,sklearn]

Points are drawn around 20,000 centres that themselves lie around 200 themes, in 32 directions that
matter and all the others with noise, scaled to unit length: what text embeddings look like. Every
method gets the same points, two threads, at most 25 Lloyd iterations and one start. Inertia is
computed here for all of them, over all points; `ratio` divides it by that of scikit-learn's plain
k-means (or of the first method, without scikit-learn).

Methods: ours; sklearn (KMeans, k-means++, Lloyd); sklearn_mini (MiniBatchKMeans); faiss (as it comes:
random start, at most 256 points per centroid); faiss_all (the same on all points). faiss needs
`pip install faiss-cpu`, and is left out with a note where it is missing.

The last line is one JSON object: {"bench": "kmeans", "rows": [...]}.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from training.evaluation.provenance import hardware
from training.semantic_ids.kmeans import kmeans, nearest

NUM_ITERATIONS = 25


def embeddings(num_points: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit vectors with themes, sub-themes and noise. Shape: (N, D), float32."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(dim, min(dim, 32))))[0].astype(np.float32)
    themes = rng.normal(size=(200, directions.shape[1])).astype(np.float32)
    centres = themes[rng.integers(0, len(themes), 20_000)]
    centres += 0.5 * rng.normal(size=centres.shape).astype(np.float32)
    points = np.empty((num_points, dim), dtype=np.float32)
    for at in range(0, num_points, 100_000):
        count = min(100_000, num_points - at)
        inside = centres[rng.integers(0, len(centres), count)]
        inside = inside + 0.3 * rng.standard_normal(inside.shape, dtype=np.float32)
        noise = 0.15 * rng.standard_normal((count, dim), dtype=np.float32)
        points[at : at + count] = inside @ directions.T + noise
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def ours(points: np.ndarray, num_centroids: int) -> np.ndarray:
    found = kmeans(torch.from_numpy(points), num_centroids, seed=0, num_iterations=NUM_ITERATIONS)
    return found.centroids.numpy()


def sklearn(points: np.ndarray, num_centroids: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    model = KMeans(num_centroids, n_init=1, max_iter=NUM_ITERATIONS, random_state=0, algorithm="lloyd")
    return model.fit(points).cluster_centers_


def sklearn_mini(points: np.ndarray, num_centroids: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    return (
        MiniBatchKMeans(num_centroids, n_init=1, batch_size=8192, random_state=0).fit(points).cluster_centers_
    )


def faiss(points: np.ndarray, num_centroids: int, *, on_all: bool = False) -> np.ndarray:
    import faiss as library

    limit = {"max_points_per_centroid": len(points)} if on_all else {}
    model = library.Kmeans(points.shape[1], num_centroids, niter=NUM_ITERATIONS, seed=1, **limit)
    model.train(points)
    return model.centroids


METHODS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "ours": ours,
    "sklearn": sklearn,
    "sklearn_mini": sklearn_mini,
    "faiss": faiss,
    "faiss_all": lambda points, num_centroids: faiss(points, num_centroids, on_all=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--centroids", type=int, default=256)
    parser.add_argument("--methods", default=",".join(METHODS), help="names, with commas between them")
    options = parser.parse_args()
    points = embeddings(options.points, options.dim)
    rows = []
    for name in options.methods.split(","):
        if name.startswith("faiss") and importlib.util.find_spec("faiss") is None:
            Console(stderr=True).print(f"{name} left out: faiss is not installed (pip install faiss-cpu)")
            continue
        start, start_cpu = time.perf_counter(), time.process_time()
        centroids = METHODS[name](points, options.centroids)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        inertia = float(
            nearest(torch.from_numpy(points), torch.from_numpy(centroids).float())[1].double().sum()
        )
        rows.append(
            {"method": name, "seconds": round(seconds, 1), "cpu_s": round(cpu, 1), "inertia": inertia}
        )
    against = next((row for row in rows if row["method"] == "sklearn"), rows[0])["inertia"]
    for row in rows:
        row["ratio"] = round(row["inertia"] / against, 4)
        row["inertia"] = round(row["inertia"], 1)
    title = f"{options.points:,} x {options.dim}, {options.centroids} centroids; {hardware()}"
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    about = {"points": options.points, "dim": options.dim, "centroids": options.centroids}
    print(
        json.dumps(
            {
                "bench": "kmeans",
                **about,
                "threads": torch.get_num_threads(),
                "load": os.getloadavg()[0],
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
