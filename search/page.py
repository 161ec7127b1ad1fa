"""report.html: a run in pictures, in one file that needs no network.

Drawn from result.json and log.jsonl alone, so that it can be drawn again at any time.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from search.report import cells

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1a202c; }
h2 { margin: 2.2rem 0 0; font-size: 1.15rem; } p { margin: .2rem 0; color: #4a5568; }
table { border-collapse: collapse; margin-top: 1rem; } th, td { padding: .3rem .9rem; border-bottom: 1px solid #e2e8f0; }
th { text-align: left; } td { font-variant-numeric: tabular-nums; }
"""
BEFORE, AFTER, OTHER = "#a0aec0", "#2b6cb0", "#dd6b20"


def page(result: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, for what result.json holds and the lines of log.jsonl."""
    config = result["config"]
    budget = ", ".join(f"{quantity} {amount}" for quantity, amount in result["budget"].items())
    title = f"{config['network']} within {budget}"
    sections = [
        ("Loss against latency", "On the sub-validation images, by PruningNet; finalists as measured.", _front(result)),
        ("Predicted against measured", "Finalists and trained networks, in milliseconds.", _predictions(result)),
        ("Channels", f"Of {_last(result)} and of the unpruned network.", _widths(result)),
        ("Latency of every kernel", "Predicted shares, in milliseconds.", _kernels(result)),
        ("Training and search", "Loss of every training, and the least so far of the search.", _curves(log)),
    ]
    body = "".join(
        f"<h2>{html.escape(heading)}</h2><p>{html.escape(text)}</p>{_div(figure)}" for heading, text, figure in sections
    )
    facts = ", ".join(f"{name} {config[name]}" for name in ("device", "precision", "threads", "batch", "data", "seed"))
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body><h1>{html.escape(title)}</h1>"
        f"<p>{html.escape(facts)}</p>{_table(result['networks'])}{body}</body></html>\n"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head, *lines = cells(rows)
    return f"<table>{_line('th', head)}{''.join(_line('td', line) for line in lines)}</table>"


def _line(kind: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{html.escape(text)}</{kind}>" for text in texts) + "</tr>"


def _div(figure: go.Figure) -> str:
    margin, legend = {"l": 60, "r": 60, "t": 40, "b": 50}, {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(template="plotly_white", height=420, margin=margin, legend=legend)
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
    return text


def _last(result: Mapping[str, Any]) -> str:
    label: str = result["networks"][-1]["label"]
    return label


def _front(result: Mapping[str, Any]) -> go.Figure:
    seen, finalists = result["search"]["front"], result["finalists"]
    figure = go.Figure(
        [
            _points("front of the search, predicted", seen, "predicted_ms", "loss", BEFORE, "lines+markers"),
            _points("finalists, measured", finalists, "measured_ms", "loss", AFTER),
        ]
    )
    figure.update_xaxes(title="ms per batch")
    figure.update_yaxes(title="sub-validation loss")
    return figure


def _points(name: str, rows: Sequence[Mapping[str, Any]], x: str, y: str, color: str, mode: str = "markers") -> go.Scatter:
    return go.Scatter(x=[row[x] for row in rows], y=[row[y] for row in rows], mode=mode, name=name, marker={"color": color})


def _predictions(result: Mapping[str, Any]) -> go.Figure:
    finalists, networks = result["finalists"], result["networks"]
    shown = [row["predicted_ms"] for row in (*finalists, *networks)]
    figure = go.Figure(
        [
            go.Scatter(
                x=[min(shown), max(shown)], y=[min(shown), max(shown)], mode="lines", name="equal", line={"color": BEFORE}
            ),
            _points("finalists", finalists, "predicted_ms", "measured_ms", AFTER),
            _points("trained networks", networks, "predicted_ms", "measured_ms", OTHER),
        ]
    )
    figure.update_xaxes(title="predicted ms")
    figure.update_yaxes(title="measured ms")
    return figure


def _widths(result: Mapping[str, Any]) -> go.Figure:
    networks = result["networks"]
    return _bars(result["genes"], networks[0]["widths"], networks[-1]["widths"], _last(result), "channels")


def _kernels(result: Mapping[str, Any]) -> go.Figure:
    kernels = result["kernels"]
    names = [f"{number}: {name}" for number, name in enumerate(kernels["kernels"])]
    return _bars(names, kernels["unpruned_ms"], kernels["pruned_ms"], _last(result), "ms")


def _bars(names: Sequence[str], before: Sequence[float], after: Sequence[float], label: str, unit: str) -> go.Figure:
    figure = go.Figure(
        [
            go.Bar(x=names, y=before, name="unpruned", marker={"color": BEFORE}),
            go.Bar(x=names, y=after, name=label, marker={"color": AFTER}),
        ]
    )
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(tickangle=-60, tickfont={"size": 9})
    figure.update_yaxes(title=unit)
    return figure


def _curves(log: Sequence[Mapping[str, Any]]) -> go.Figure:
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for entry in log:
        if entry.get("value") is not None:
            stages.setdefault(entry["stage"], []).append(entry)
    figure = go.Figure()
    for stage, entries in stages.items():
        share = [entry["done"] / entry["total"] for entry in entries]
        figure.add_scatter(x=share, y=[entry["value"] for entry in entries], name=stage)
    figure.update_xaxes(title="share of the stage", tickformat=".0%")
    figure.update_yaxes(title="loss")
    return figure
