"""A map of embeddings without a browser: t-SNE in two dimensions, coloured by speaker, as a PNG and as an array."""

import os
from pathlib import Path

import numpy as np
from sklearn.manifold import TSNE

from vggvox_tf.projector import principal_components
from vggvox_tf.scoring import unit_length

# t-SNE of so many points takes ten seconds, and a picture of more is a cloud.
POINTS = 3000
# Ten colours, without the grey of the others, times two marks: more cannot be told apart, nor does the legend fit.
COLOURS = (
    "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan",
    "black",
)  # fmt: skip
MARKS = "o^"
SPEAKERS = len(COLOURS) * len(MARKS)
# Beyond 50 dimensions t-SNE finds no other neighbours, only more slowly (van der Maaten and Hinton 2008, section 4.1).
DIMENSIONS = 50


def t_sne(embeddings, seed):
    """Places (N, 2) of vectors (N, D), N and D >= 2, by t-SNE of their directions: near by cosine, near on the map."""
    vectors = principal_components(unit_length(np.asarray(embeddings, np.float32)), DIMENSIONS)
    # Usually 30; it has to be below the number of points, and a third of it so that "near" still means something.
    perplexity = min(30, max(1, (len(vectors) - 1) / 3))
    # As scikit-learn's init="pca", which divides by 0 where all vectors are equal, and then ends the process.
    start = 1e-4 * vectors[:, :2] / max(vectors[:, 0].std(), 1e-6)
    start += 1e-6 * np.random.default_rng(seed).standard_normal(start.shape, np.float32)
    return TSNE(perplexity=perplexity, init=start, random_state=seed, n_jobs=os.cpu_count()).fit_transform(vectors)


def sample(rows, seed):
    """Sorted indices of at most POINTS of `rows` points, drawn from the seed."""
    if rows <= POINTS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, POINTS, replace=False))


def draw(places, speakers, path, title):
    """Writes a map of `places` (N, 2) to the PNG `path`, whole or not at all, and returns it as uint8 (H, W, 3).

    The SPEAKERS with the most points have a colour and a place in the legend; the others are grey.
    """
    # Here, as in plots.py: who draws nothing need not wait for matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    speakers = np.asarray(speakers).astype(str)
    names, counts = np.unique(speakers, return_counts=True)
    shown = np.sort(names[np.argsort(-counts, kind="stable")[:SPEAKERS]])
    figure = Figure(figsize=(9, 6.4), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, parse_math=False)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    size = float(np.clip(12_000 / len(places), 8, 60))
    others = ~np.isin(speakers, shown)
    if others.any():
        axes.scatter(*places[others].T, s=size, color="0.82", linewidth=0)
    handles = []
    for index, name in enumerate(shown):
        colour, mark = COLOURS[index % len(COLOURS)], MARKS[index // len(COLOURS)]
        handles.append(axes.scatter(*places[speakers == name].T, s=size, color=colour, marker=mark, linewidth=0))
    labels = [f"{name} ({np.count_nonzero(speakers == name)})" for name in shown]
    if others.any():
        handles.append(axes.scatter([], [], s=size, color="0.82"))
        labels.append(f"{len(names) - len(shown)} others ({np.count_nonzero(others)})")
    legend = figure.legend(handles, labels, loc="outside right upper", fontsize=9, title="speaker (points)")
    for text in legend.get_texts():
        text.set_parse_math(False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
