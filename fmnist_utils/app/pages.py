"""The page in Dash components: layout, answers, history. How good a model is stands in :mod:`fmnist_utils.app.quality`.

Look and layout are in ``assets/app.css``. Explained in ``notebooks/07_deployment.ipynb``.
"""

import numpy as np
import torch
from dash import dcc, html

from fmnist_utils.app import quality, serving
from fmnist_utils.app.photos import STEPS
from fmnist_utils.app.quality import image_button, percent
from fmnist_utils.data import CLASSES

#: Rows of the history: the browser sends them all for the table and for the file.
MOST_ROWS = 50


def page(model: str, max_upload: float, base: str = "/") -> html.Div:
    """The whole page under the path ``base``, with ``model`` chosen and uploads of up to ``max_upload`` MB."""
    links = [
        dcc.Link("Try it", href=base, id="to-try"),
        dcc.Link("How good is it?", href=f"{base}quality", id="to-quality"),
    ]
    what = "A small neural network names your picture. It knows ten kinds of clothes, no more."
    close = html.Button("Close", id="close", type="button")
    lost = [html.H2("There is no such page"), html.P(["Nothing is at this address. ", dcc.Link("Try it", href=base)])]
    return html.Div(
        [
            html.A("Skip to the content", href="#main", className="skip"),
            html.Header(
                [
                    html.Div([html.H1("Which garment is it?"), html.P(what)]),
                    html.Nav(links, **{"aria-label": "Pages"}),
                    html.Button("Dark", id="theme-button", type="button"),
                ]
            ),
            html.Div([html.Div(id="message", role="alert"), close], className="message"),
            html.Main(
                [
                    _try_page(model, max_upload),
                    quality.layout(),
                    html.Section(lost, id="lost", className="card empty", hidden=True),
                ],
                id="main",
                tabIndex=-1,
            ),
            html.Footer("Your pictures are not stored. The test images are Zalando Research's (MIT licence)."),
            dcc.Location("url", refresh="callback-nav"),
            dcc.Store("pictures"),
            dcc.Store("rows"),
            dcc.Store("cell"),
            dcc.Store("history", storage_type="session", data=[]),
            dcc.Download("download"),
        ],
        id="page",
        **{"data-limit": str(int(max_upload * 1e6)), "data-base": base, "data-rows": str(MOST_ROWS)},
    )


def _try_page(model: str, max_upload: float) -> html.Div:
    results = html.Div(EMPTY, id="results", tabIndex=-1)
    buttons = [html.Button("Clear", id="clear", type="button"), html.Button("Download CSV", id="csv", type="button")]
    history = html.Section(
        [html.Div([html.H2("So far"), *buttons], className="bar"), html.Div(id="table")], className="card history"
    )
    notice = html.Div(id="notice", role="status", className="warning")
    answer = html.Div(id="answer", role="status")
    right = [_settings(model), notice, results, answer, history]
    return html.Div(
        [html.Div(_choose(max_upload), className="column"), html.Div(right, className="column")], id="try", hidden=True
    )


def _choose(max_upload: float) -> html.Section:
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
    needs = "Fill the shape: the network knows light garments on black. Drawing needs a mouse, a pen or a finger."
    drawing = [
        html.P(needs, className="hint"),
        html.Canvas(id="canvas", width=280, height=280, role="img", **{"aria-label": "Drawing area, by pointer only"}),
        html.Div(
            [
                html.Label(["Brush ", dcc.Input(id="brush", type="range", min=6, max=60, step=2, value=26)]),
                html.Button("Undo", id="undo", type="button"),
                html.Button("Clear", id="erase", type="button", **{"aria-label": "Clear the drawing"}),
            ],
            className="tools",
        ),
    ]
    return html.Section(
        [
            html.H2("Choose a picture"),
            upload,
            html.Details([html.Summary("Draw one"), *drawing], id="draw"),
            html.Div([html.H3("Test images"), html.Button("Show others", id="others", type="button")], className="bar"),
            html.Div(gallery(0), id="gallery"),
        ],
        className="card choose",
    )


def _settings(model: str) -> html.Section:
    """Model and steps: beside the answer, because changing them changes it."""
    cards = serving.cards()
    models = [{"label": _model_card(name, card), "value": name} for name, card in cards.items()]
    why = (
        "The models learned from light garments on black, cut out and centred. These steps help photos look like that; "
        "switch one off to see what it does."
    )
    steps = dcc.Checklist([{"label": label, "value": step} for step, label in STEPS.items()], list(STEPS), id="steps")
    facts = [html.Li([html.Strong(name), ": ", _facts(card)]) for name, card in cards.items()]
    return html.Section(
        [
            html.Fieldset([html.Legend("Model"), dcc.RadioItems(models, model, id="model")]),
            html.Div(
                [
                    html.Details([html.Summary("About the models"), html.Ul(facts, className="hint")]),
                    html.Details([html.Summary("How photos are prepared"), html.P(why, className="hint"), steps]),
                ],
                className="more",
            ),
        ],
        className="card settings",
        **{"aria-label": "Model and preparation"},
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
    right = f"{card['metrics']['test_accuracy']:.2%} right" if "metrics" in card else "accuracy not recorded"
    return html.Span([html.Strong(name), html.Span(f"{right}, {card['bytes'] / 1e6:.1f} MB")], className="model-card")


def _facts(card: dict) -> str:
    learned, licence = card.get("data", "not recorded").rpartition(": ")[2], card.get("licence", "not recorded")
    return f"learned from: {learned}; licence: {licence}"


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


def headline(picture: serving.Picture, answer: serving.Answer) -> tuple[str, str]:
    """The answer in a few words, and how far to trust it: the same in a card's heading and in the line read aloud."""
    best = int(answer.probabilities.argmax())
    sure, doubt = percent(answer.probabilities[best]), serving.warning(picture, answer)
    if picture.doubt:
        return "No single garment", f"(closest: {CLASSES[best]}, {sure})"
    unsure = ", not sure" if answer.probabilities[best] < 0.5 and not doubt else ""
    return CLASSES[best], f"{sure}{unsure}{f', {doubt[0]}' if doubt else ''}"


def answer_card(
    name: str, picture: serving.Picture, answer: serving.Answer, key: str, model: str, short: bool = False
) -> html.Article:
    """What ``model`` said about one picture; ``name`` is only shown, ``key`` is how the page calls it, and ``short``,
    for one of many, keeps all but the answer, its warnings and the picture folded."""
    order = answer.probabilities.argsort()[::-1]
    best, (said, trust) = CLASSES[order[0]], headline(picture, answer)
    stages = [(text, _figure(text, image)) for text, image in picture.stages]
    came, own = stages[0][1].children[0].src, picture.label is None
    turn = [_turn_buttons(key, answer.turns)] if own and len(stages) > 2 else []
    pictures = [_framed("Your picture", came)] * own + [
        _figure("28×28 pixels" if short else "What the network gets: 28×28", picture.pixels)
    ]
    seen = [_figure(f"Where it saw “{best}” (Grad-CAM)", answer.overlay)] if answer.overlay else []
    bars = html.Ol([_bar(CLASSES[i], answer.probabilities[i]) for i in order], className="bars")
    usual = f"{answer.share:.1%} of the validation images look at least as unusual to this model."
    if len(stages) > 1:
        prepared = html.Div([figure for _, figure in stages], className="stages")
        prepared = html.Details([html.Summary(f"How it was prepared: {len(stages)} stages"), prepared], open=True)
    else:
        prepared = html.P(f"{stages[0][0]}.", className="hint")
    card = [
        html.P([html.Span(name, className="name"), html.Span(model, className="by")], className="line"),
        html.H2([said, html.Span(f" {trust}")]),
        *_notes(picture, answer, best),
        *(turn if answer.turns else []),
        html.Div(pictures + seen * (not short), className="pictures"),
    ]
    rest = [*([] if answer.turns else turn), bars, prepared, html.P(usual, className="hint")]
    if short:
        rest = [html.Details([html.Summary("More"), html.Div(seen, className="pictures"), *rest], className="rest")]
    label = {"aria-label": f"{name}: {said}, {trust}"}
    return html.Article(card + rest, className="card result short" if short else "card result", **label)


def bad_card(name: str, why: str, short: bool = False) -> html.Article:
    """What stands in the place of an answer where a file is no picture; ``short`` for one of many."""
    kind = "card result short" if short else "card result"
    return html.Article([html.H2(name, className="name"), html.P(why, className="warning")], className=kind)


def _notes(picture: serving.Picture, answer: serving.Answer, best: str) -> list[html.P]:
    notes = []
    if doubt := serving.warning(picture, answer):
        notes.append(html.P(doubt[1], className="warning"))
    if picture.label is not None:
        known = CLASSES[picture.label]
        text = f"{'Right' if known == best else 'Wrong'}: its label is {known}."
        notes.append(html.P(text, className="right" if known == best else "warning"))
    return notes


def _turn_buttons(key: str, turns: int) -> html.Div:
    """Buttons that turn the picture, the way that would look more usual first in sight."""
    ways = {"Turn left": 1, "Turn right": 3} | ({"Turn upside down": 2} if turns == 2 else {})
    buttons = [
        html.Button(text, type="button", className="primary" if count == turns else None,
                    **{"data-turn": str(count), "data-of": key})
        for text, count in ways.items()
    ]  # fmt: skip
    return html.Div(buttons, className="turns")


def _figure(text: str, image) -> html.Figure:
    kind = "pixels" if isinstance(image, torch.Tensor) or max(image.size) <= 28 else None
    return _framed(text, serving.data_url(image), kind)


def _framed(text: str, url: str, kind: str | None = None) -> html.Figure:
    return html.Figure([html.Img(src=url, alt="", className=kind), html.Figcaption(text)])


def _bar(name: str, probability: float) -> html.Li:
    fill = html.Span(html.Span(style={"width": f"{probability:.2%}"}), className="track")
    return html.Li([html.Span(name), fill, html.Span(">99.9%" if probability > 0.9995 else f"{probability:.1%}")])


def sound(history: list | None) -> list[dict]:
    """The rows of a history that can be shown: a browser may still hold those of an older version of this page."""
    wanted = {"name": str, "answer": str, "model": str, "image": str, "confidence": int | float}
    return [
        row for row in history or []
        if isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in wanted.items())
    ]  # fmt: skip


def history_table(history: list | None) -> html.Div | html.P:
    """The rows of the session's history, newest first; each name is a button that opens its picture again."""
    if not (history := sound(history)):
        return html.P("Nothing yet. What you try is listed here until you close the tab.", className="hint")
    head = html.Tr([html.Th(text, scope="col") for text in ("Picture", "Name", "Answer", "Sure", "Model")])
    rows = [
        html.Tr(
            [
                html.Td(html.Img(src=row["image"], alt="")),
                html.Td(_open_again(row)),
                html.Td([row["answer"], *([" ", html.Span(row["warning"])] if row.get("warning") else [])]),
                html.Td(percent(row["confidence"])),
                html.Td(row["model"]),
            ]
        )
        for row in history
    ]
    full = [html.P(f"The latest {MOST_ROWS} only: download them before you go on.", className="hint")]
    return html.Div([*full * (len(rows) >= MOST_ROWS), html.Table([html.Thead(head), html.Tbody(rows)])])


def _open_again(row: dict) -> html.Button:
    found = {"data-row": str(row.get("id")), "data-index": str(row.get("index", "")), "title": "Open again"}
    return html.Button(row["name"], type="button", className="name", **found)
