"""The page's second tab: how good a model is, from its recorded test predictions."""

import numpy as np
import pandas as pd
from dash import dcc, html
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from fmnist_utils.app import serving
from fmnist_utils.data import CLASSES
from fmnist_utils.evaluate import accuracy_interval, reliability

MAX_IN_CELL = 36


def layout() -> html.Div:
    """The tab, empty until it is opened."""
    models = [html.Legend("Model"), dcc.RadioItems(list(serving.cards()), id="same-model", inline=True)]
    scores = html.Section([html.Fieldset(models), html.Div(id="scores", className="stack")], className="card")
    left = [scores, html.Section(id="cell-images", className="card")]
    right = html.Section(id="details", className="card")
    return html.Div(
        [html.Div(left, className="column"), html.Div(right, className="column")], id="quality", hidden=True
    )


def scores(hidden: bool | None, model: str):
    """Accuracy and confusion matrix; scores by class and calibration: all from the recorded test predictions."""
    if hidden is not False:
        return None, None
    labels, probabilities = serving.gallery().labels.numpy(), _recorded(model)
    if isinstance(probabilities, str):
        return html.P(probabilities), None
    counts = confusion_matrix(labels, probabilities.argmax(1), labels=range(10))
    right, total = int(counts.trace()), int(counts.sum())
    low, high = accuracy_interval(right, total)
    bins, error = reliability(probabilities, labels)
    bins = bins.rename(columns={"count": "images"})
    summary = [
        html.H2(f"{model}: {right / total:.2%} of {total:,} test images right"),
        html.P(f"95% interval {low:.1%} to {high:.1%}. It never saw these images while it learned.", className="hint"),
        html.H3("What it confuses"),
        html.P("A row is what the image shows, a column what the model says. Click a number to see the images."),
        _matrix(counts),
    ]
    details = [
        html.H2("Class by class"),
        _class_table(labels, probabilities.argmax(1)),
        html.P("Precision: how many of those it calls so are so. Recall: how many of those that are so it finds. "
               "F1 balances the two.", className="hint"),
        html.H2("Does it know when it is right?"),
        html.P(f"Points on the line: what it is 80% sure of is right 80% of the time. Mean distance {error:.1%} "
               "(expected calibration error)."),
        _reliability_plot(bins),
        _reliability_table(bins),
    ]  # fmt: skip
    return summary, details


def _recorded(model: str) -> np.ndarray | str:
    """The model's probabilities for all test images, or a sentence that says why there are none."""
    try:
        probabilities = serving.recorded(model)
    except FileNotFoundError:
        return f"No test predictions of “{model}” are in results/predictions or runs/predictions."
    except ValueError as error:  # names the file
        return str(error)
    if len(probabilities) == len(serving.gallery()):
        return probabilities
    return f"The predictions of “{model}” are of {_images(len(probabilities))} only, as the smoke profile makes them."


def image_button(index: int, caption: str = "") -> html.Button:
    pixels, label = serving.gallery()[int(index)]
    text = f"Test image {index}: {CLASSES[label]}{', ' * bool(caption)}{caption}"
    content = [html.Img(src=serving.data_url(pixels), alt=text), *([html.Span(caption)] if caption else [])]
    return html.Button(content, type="button", title=text, className="thumb", **{"data-picture": str(index)})


def percent(probability: float) -> str:
    """Rounded, but never to certainty."""
    return "over 99%" if probability > 0.99 else f"{probability:.0%}"


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _matrix(counts: np.ndarray) -> html.Table:
    head = html.Tr([html.Td(), *(html.Th(html.Span(name), scope="col") for name in CLASSES)])
    rows = []
    for true, (name, row) in enumerate(zip(CLASSES, counts, strict=True)):
        cells = []
        for said, count in enumerate(row):
            text = f"{_images(count)}: {name}, called {CLASSES[said]}"
            button = html.Button(
                str(count), type="button", title=text, **{"aria-label": text, "data-cell": f"{true},{said}"}
            )
            kind = "hit" if true == said else "miss"
            # The square root of shares up to a tenth: rare confusions stay visible, and any number readable.
            strength = {"--strength": f"{50 * min(1, 10 * count / row.sum()) ** 0.5:.0f}%"}
            cells.append(html.Td(button if count else None, className=kind, style=strength))
        rows.append(html.Tr([html.Th(name, scope="row"), *cells]))
    return html.Table([html.Thead(head), html.Tbody(rows)], className="matrix")


def _class_table(labels: np.ndarray, predicted: np.ndarray) -> html.Table:
    columns = precision_recall_fscore_support(labels, predicted, labels=range(10), zero_division=0)[:3]
    head = html.Tr([html.Th(text, scope="col") for text in ("Class", "Precision", "Recall", "F1")])
    rows = [
        html.Tr([html.Th(name, scope="row"), *(html.Td(f"{value:.1%}") for value in values)])
        for name, *values in zip(CLASSES, *columns, strict=True)
    ]
    return html.Table([html.Thead(head), html.Tbody(rows)])


def _reliability_plot(bins: pd.DataFrame) -> html.Div:
    """Accuracy against confidence, in boxes that ``app.css`` places: no library has to be sent, and colours follow."""
    ticks = [
        html.Span(f"{tick}%", className=f"tick {axis}", style={side: f"{tick}%"})
        for axis, side in (("x", "left"), ("y", "bottom")) for tick in range(0, 101, 20)
    ]  # fmt: skip
    sizes = 7 + 15 * (bins.images / bins.images.max()) ** 0.5
    points = []
    for found, size in zip(bins.itertuples(), sizes, strict=True):
        place = {"left": f"{found.confidence:.2%}", "bottom": f"{found.accuracy:.2%}", "--size": f"{size:.0f}px"}
        text = f"{_images(found.images)}: {found.confidence:.1%} sure, {found.accuracy:.1%} right"
        points.append(html.Span(className="point", title=text, style=place))
    names = [
        html.Span("how often it is right", className="axis y"),
        html.Span("how sure the model is", className="axis x"),
    ]
    says = "Points near a rising diagonal line; the table below holds their numbers."
    area = html.Div([*ticks, *points, *names], className="area")
    return html.Div(area, className="plot", role="img", **{"aria-label": says})


def _reliability_table(bins: pd.DataFrame) -> html.Details:
    head = html.Tr([html.Th(text, scope="col") for text in ("Images", "How sure", "How often right")])
    rows = [
        html.Tr([html.Td(f"{found.images:,}"), html.Td(f"{found.confidence:.1%}"), html.Td(f"{found.accuracy:.1%}")])
        for found in bins.itertuples()
    ]
    return html.Details([html.Summary("As a table"), html.Table([html.Thead(head), html.Tbody(rows)])])


def cell_images(cell: list | None, model: str):
    """The images in a cell of the confusion matrix, those that the model was surest of first."""
    if not cell:
        return html.P("Click a number in the table: its images appear here.", className="hint")
    true, said = (int(number) for number in cell)
    probabilities = _recorded(model)
    if isinstance(probabilities, str):  # said above already
        return None
    chosen = np.flatnonzero((serving.gallery().labels.numpy() == true) & (probabilities.argmax(1) == said))
    chosen = chosen[np.argsort(-probabilities[chosen, said])]
    few = f", the {MAX_IN_CELL} it was surest of" if len(chosen) > MAX_IN_CELL else ""
    heading = html.H3(f"{CLASSES[true]}, called {CLASSES[said]}: {_images(len(chosen))}{few}")
    if not len(chosen):  # of a number chosen for another model
        return heading
    return [
        heading,
        html.P("Below each, how sure it was. Click one to look closer.", className="hint"),
        html.Div([image_button(i, f"{probabilities[i, said]:.0%}") for i in chosen[:MAX_IN_CELL]], className="thumbs"),
    ]
