"""The page of :mod:`fmnist_utils.app` in Dash components: layout, answers, history, and how good a model is.

Look and layout are in ``assets/app.css``. Explained in ``notebooks/07_deployment.ipynb``.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from dash import dcc, html
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from fmnist_utils import serving
from fmnist_utils.data import CLASSES
from fmnist_utils.evaluate import accuracy_interval, reliability
from fmnist_utils.photos import STEPS

MAX_IN_CELL = 36
#: Below this share of validation images that are as unusual, the page warns.
UNUSUAL = 0.01
_PLOT = {"showSendToCloud": False, "displaylogo": False, "displayModeBar": False}


def page(model: str, max_upload: float) -> html.Div:
    """The whole page, with ``model`` chosen and uploads of up to ``max_upload`` MB."""
    links = [dcc.Link("Try it", href="/", id="to-try"), dcc.Link("How good is it?", href="/quality", id="to-quality")]
    what = "A small neural network names your picture. It knows ten kinds of clothes, no more."
    return html.Div(
        [
            html.Header(
                [
                    html.Div([html.H1("Which garment is it?"), html.P(what)]),
                    html.Nav(links, **{"aria-label": "Pages"}),
                    html.Button("Dark", id="theme-button", type="button"),
                ]
            ),
            html.Div(id="message", role="alert"),
            html.Main([_try_page(model, max_upload), _quality_page()]),
            html.Footer("Your pictures are not stored. The test images are Zalando Research's (MIT licence)."),
            dcc.Location("url", refresh="callback-nav"),
            dcc.Store("pictures"),
            dcc.Store("cell"),
            dcc.Store("theme"),
            dcc.Store("history", storage_type="session", data=[]),
            dcc.Download("download"),
        ],
        id="page",
        **{"data-limit": str(int(max_upload * 1e6))},
    )


def _try_page(model: str, max_upload: float) -> html.Div:
    upload = dcc.Upload(
        [
            html.Strong("Drop pictures here"),
            html.Button("Choose pictures", type="button"),
            html.Span(f"or paste one (Ctrl+V). Up to {max_upload:g} MB."),
        ],
        id="upload",
        className="drop",
        className_active="drop active",
        multiple=True,
        max_size=int(max_upload * 1e6),
    )
    drawing = [
        html.P("Fill the shape: the network knows light garments on black.", className="hint"),
        html.Canvas(
            id="canvas", width=280, height=280, role="img", **{"aria-label": "Drawing area, for mouse or touch"}
        ),
        html.Div(
            [
                html.Label(["Brush ", dcc.Input(id="brush", type="range", min=6, max=60, step=2, value=26)]),
                html.Button("Undo", id="undo", type="button"),
                html.Button("Clear", id="erase", type="button"),
            ],
            className="tools",
        ),
    ]
    choose = html.Section(
        [
            html.H2("Choose a picture"),
            upload,
            html.Details([html.Summary("Draw one"), *drawing], id="draw"),
            html.Div([html.H3("Test images"), html.Button("Show others", id="others", type="button")], className="bar"),
            html.Div(gallery(0), id="gallery"),
        ],
        className="card choose",
    )
    models = [{"label": _model_card(name, card), "value": name} for name, card in serving.cards().items()]
    why = (
        "The models learned from light garments on black, cut out and centred. These steps help photos look like that; "
        "switch one off to see what it does."
    )
    steps = dcc.Checklist([{"label": label, "value": step} for step, label in STEPS.items()], list(STEPS), id="steps")
    settings = html.Section(
        [
            html.Fieldset([html.Legend("Model"), dcc.RadioItems(models, model, id="model")]),
            html.Fieldset([html.Legend("Preparing a photo"), html.P(why, className="hint"), steps]),
        ],
        className="card settings",
    )
    history = html.Section(
        [
            html.Div(
                [
                    html.H2("So far"),
                    html.Button("Clear", id="clear", type="button"),
                    html.Button("Download CSV", id="csv", type="button"),
                ],
                className="bar",
            ),
            html.Div(id="table"),
        ],
        className="card history",
    )
    results = html.Div(EMPTY, id="results", tabIndex=-1)
    left, right = html.Div([choose, settings], className="column"), html.Div([results, history], className="column")
    return html.Div(
        [left, right, html.A(id="answer", href="#results", tabIndex=-1, **{"aria-live": "polite"})], id="try"
    )


EMPTY = html.Section(
    [
        html.H2("Your answer appears here"),
        html.P("Click a test image, drop a photo of one garment on a plain background, or draw something."),
        html.P("You will see what the network thinks, the 28×28 pixels it thinks that about, and where it looked."),
    ],
    className="card empty",
)


def _model_card(name: str, card: dict) -> html.Span:
    facts = {
        "test accuracy": f"{card['metrics']['test_accuracy']:.2%}" if "metrics" in card else "not recorded",
        "learned from": card.get("data", "not recorded").rpartition(": ")[2],
        "file": f"{card['bytes'] / 1e6:.1f} MB",
        "licence": card.get("licence", "not recorded"),
    }
    rows = [html.Span([html.Span(f"{key}: "), value]) for key, value in facts.items()]
    return html.Span([html.Strong(name), *rows], className="model-card")


def gallery(seed: int | None) -> list[html.Div]:
    """Five test images of each class, as buttons; ``seed`` chooses which."""
    labels, random = serving.gallery().labels.numpy(), np.random.default_rng(seed)
    return [
        html.Div(
            [html.Span(name), *(image_button(i) for i in random.choice(np.flatnonzero(labels == label), 5, False))],
            className="gallery-row",
        )
        for label, name in enumerate(CLASSES)
    ]


def image_button(index: int, caption: str = "") -> html.Button:
    pixels, label = serving.gallery()[int(index)]
    text = f"Test image {index}: {CLASSES[label]}{', ' * bool(caption)}{caption}"
    content = [html.Img(src=serving.data_url(pixels), alt=text), *([html.Span(caption)] if caption else [])]
    return html.Button(content, type="button", title=text, className="thumb", **{"data-picture": str(index)})


def answer_card(name: str, picture: serving.Picture, answer: serving.Answer) -> html.Article:
    """What the model said about one picture; ``name`` is only shown."""
    order = answer.probabilities.argsort()[::-1]
    best, sure = CLASSES[order[0]], answer.probabilities[order[0]]
    notes = []
    if answer.share < UNUSUAL:
        text = f"fewer than 1 in {round(1 / UNUSUAL)} validation images look as unusual to this model"
        notes.append(html.P(f"This does not look like the images it learned from: {text}. Don't rely on its answer.",
                            className="warning"))  # fmt: skip
    if picture.label is not None:
        right = picture.label == order[0]
        text = f"{'Right' if right else 'Wrong'}: its label is {CLASSES[picture.label]}."
        notes.append(html.P(text, className="right" if right else "warning"))
    came = picture.stages[0][1]
    pictures = [("Your picture", came)] * (picture.label is None) + [("What the network gets: 28×28", picture.pixels)]
    if answer.overlay:
        pictures.append((f"Where it saw “{best}” (Grad-CAM)", answer.overlay))
    card = [
        html.P(name, className="name"),
        html.H2([best, html.Span(f" {percent(sure)}{', not sure' * bool(sure < 0.5)}")]),
        *notes,
        html.Div([_figure(text, image) for text, image in pictures], className="pictures"),
        html.Ol([_bar(CLASSES[i], answer.probabilities[i]) for i in order], className="bars"),
    ]
    if len(picture.stages) > 1:
        stages = html.Div([_figure(text, image) for text, image in picture.stages], className="stages")
        card.append(
            html.Details([html.Summary(f"How it was prepared: {len(picture.stages)} stages"), stages], open=True)
        )
    else:
        card.append(html.P(f"{picture.stages[0][0]}.", className="hint"))
    card.append(
        html.P(f"{answer.share:.1%} of the validation images look at least as unusual to this model.", className="hint")
    )
    return html.Article(card, className="card result", **{"aria-label": f"{name}: {best}, {percent(sure)}"})


def percent(probability: float) -> str:
    """Rounded, but never to certainty."""
    return "over 99%" if probability > 0.99 else f"{probability:.0%}"


def _figure(text: str, image) -> html.Figure:
    kind = "pixels" if isinstance(image, torch.Tensor) or max(image.size) <= 28 else None
    return html.Figure([html.Img(src=serving.data_url(image), alt=text, className=kind), html.Figcaption(text)])


def _bar(name: str, probability: float) -> html.Li:
    fill = html.Span(html.Span(style={"width": f"{probability:.2%}"}), className="track")
    return html.Li([html.Span(name), fill, html.Span(">99.9%" if probability > 0.9995 else f"{probability:.1%}")])


def history_table(history: list | None) -> html.Table | html.P:
    """The rows of the session's history, newest first."""
    if not history:
        return html.P("Nothing yet. What you try is listed here until you close the tab.", className="hint")
    head = html.Tr([html.Th(text, scope="col") for text in ("", "Picture", "Answer", "Sure", "Model")])
    rows = [
        html.Tr(
            [
                html.Td(html.Img(src=row["image"], alt="")),
                html.Td(row["name"], className="name"),
                html.Td([row["answer"], *([" ", html.Span("unusual")] if row["share_as_unusual"] < UNUSUAL else [])]),
                html.Td(percent(row["confidence"])),
                html.Td(row["model"]),
            ]
        )
        for row in history
    ]
    return html.Table([html.Thead(head), html.Tbody(rows)])


def _quality_page() -> html.Div:
    models = [html.Legend("Model"), dcc.RadioItems(list(serving.cards()), id="same-model", inline=True)]
    scores = html.Section([html.Fieldset(models), html.Div(id="scores", className="stack")], className="card")
    left = [scores, html.Section(id="cell-images", className="card")]
    right = html.Section(id="details", className="card")
    return html.Div(
        [html.Div(left, className="column"), html.Div(right, className="column")], id="quality", hidden=True
    )


def quality(path: str | None, model: str, theme: str | None):
    """Accuracy and confusion matrix; scores by class and calibration: all from the recorded test predictions."""
    if path != "/quality":
        return None, None
    labels = serving.gallery().labels.numpy()
    try:
        probabilities = serving.recorded(model)
    except FileNotFoundError:
        return html.P(f"No test predictions of “{model}” are recorded in results/predictions."), None
    counts = confusion_matrix(labels, probabilities.argmax(1), labels=range(10))
    right, total = int(counts.trace()), int(counts.sum())
    low, high = accuracy_interval(right, total)
    bins, error = reliability(probabilities, labels)
    scores = [
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
        dcc.Graph(figure=_reliability_figure(bins, theme == "dark"), config=_PLOT, responsive=True, className="plot"),
    ]  # fmt: skip
    return scores, details


def _matrix(counts: np.ndarray) -> html.Table:
    head = html.Tr([html.Td(), *(html.Th(html.Span(name), scope="col") for name in CLASSES)])
    rows = []
    for true, (name, row) in enumerate(zip(CLASSES, counts, strict=True)):
        cells = []
        for said, count in enumerate(row):
            text = f"{count} images: {name}, called {CLASSES[said]}"
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


def _reliability_figure(bins: pd.DataFrame, dark: bool) -> go.Figure:
    ink, lines, points = ("#E8ECF0", "#3A444F", "#6CB6F5") if dark else ("#1C2024", "#D8DDE3", "#0060A8")
    text = bins.apply(
        lambda b: f"{b['count']:,.0f} images<br>{b.confidence:.1%} sure<br>{b.accuracy:.1%} right", axis=1
    )
    size = 7 + 15 * (bins["count"] / bins["count"].max()) ** 0.5
    line, points = {"color": ink, "dash": "dash", "width": 1}, {"color": points, "size": size, "opacity": 1}
    figure = go.Figure(
        [
            go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, hoverinfo="skip"),
            go.Scatter(x=bins.confidence, y=bins.accuracy, mode="markers", text=text, hoverinfo="text", marker=points),
        ]
    )
    axis = {
        "range": [0, 1.06],
        "dtick": 0.2,
        "tickformat": ".0%",
        "ticks": "outside",
        "tickcolor": "rgba(0,0,0,0)",
        "gridcolor": lines,
        "zerolinecolor": lines,
        "fixedrange": True,
    }
    figure.update_layout(
        xaxis=axis | {"title": {"text": "how sure the model is"}},
        yaxis=axis | {"title": {"text": "how often it is right"}},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"color": ink, "size": 13, "family": "system-ui, sans-serif"},
        margin={"l": 10, "r": 10, "t": 10, "b": 10}, showlegend=False, height=320,
    )  # fmt: skip
    return figure


def cell_images(cell: list | None, model: str):
    """The images in a cell of the confusion matrix, those that the model was surest of first."""
    if not cell:
        return html.P("Click a number in the table: its images appear here.", className="hint")
    true, said = (int(number) for number in cell)
    probabilities = serving.recorded(model)
    chosen = np.flatnonzero((serving.gallery().labels.numpy() == true) & (probabilities.argmax(1) == said))
    chosen = chosen[np.argsort(-probabilities[chosen, said])]
    few = f", the {MAX_IN_CELL} it was surest of" if len(chosen) > MAX_IN_CELL else ""
    return [
        html.H3(f"{CLASSES[true]}, called {CLASSES[said]}: {len(chosen):,} images{few}"),
        html.P("Below each, how sure it was. Click one to look closer.", className="hint"),
        html.Div([image_button(i, f"{probabilities[i, said]:.0%}") for i in chosen[:MAX_IN_CELL]], className="thumbs"),
    ]
