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


def page(model: str, max_upload: float, base: str = "/") -> html.Div:
    """The whole page under the path ``base``, with ``model`` chosen and uploads of up to ``max_upload`` MB."""
    links = [
        dcc.Link("Try it", href=base, id="to-try"),
        dcc.Link("How good is it?", href=f"{base}quality", id="to-quality"),
    ]
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
            html.Div(id="message", role="alert", className="message"),
            html.Div(id="notice", role="alert", className="message"),
            html.Main([_try_page(model, max_upload), quality.layout()]),
            html.Footer("Your pictures are not stored. The test images are Zalando Research's (MIT licence)."),
            dcc.Location("url", refresh="callback-nav"),
            dcc.Store("pictures"),
            dcc.Store("rows"),
            dcc.Store("cell"),
            dcc.Store("theme"),
            dcc.Store("history", storage_type="session", data=[]),
            dcc.Download("download"),
        ],
        id="page",
        **{"data-limit": str(int(max_upload * 1e6)), "data-base": base},
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


def headline(picture: serving.Picture, answer: serving.Answer) -> tuple[str, str]:
    """The answer in a few words, and how far to trust it: the same in a card's heading and in the line read aloud."""
    best = int(answer.probabilities.argmax())
    sure, doubt = percent(answer.probabilities[best]), serving.warning(picture, answer)
    if picture.doubt:
        return "No single garment", f"(closest: {CLASSES[best]}, {sure})"
    unsure = ", not sure" if answer.probabilities[best] < 0.5 and not doubt else ""
    return CLASSES[best], f"{sure}{unsure}{f', {doubt[0]}' if doubt else ''}"


def answer_card(name: str, picture: serving.Picture, answer: serving.Answer, key: str) -> html.Article:
    """What the model said about one picture; ``name`` is only shown, and ``key`` is how the page calls it."""
    order = answer.probabilities.argsort()[::-1]
    best, (said, trust) = CLASSES[order[0]], headline(picture, answer)
    notes, doubt = [], serving.warning(picture, answer)
    if doubt:
        notes.append(html.P(doubt[1], className="warning"))
    if picture.label is not None:
        right = picture.label == order[0]
        text = f"{'Right' if right else 'Wrong'}: its label is {CLASSES[picture.label]}."
        notes.append(html.P(text, className="right" if right else "warning"))
    came, own = picture.stages[0][1], picture.label is None and len(picture.stages) > 2
    turn = [_turn_buttons(key, answer.turns)] if own else []
    pictures = [("Your picture", came)] * (picture.label is None) + [("What the network gets: 28×28", picture.pixels)]
    if answer.overlay:
        pictures.append((f"Where it saw “{best}” (Grad-CAM)", answer.overlay))
    card = [
        html.P(name, className="name"),
        html.H2([said, html.Span(f" {trust}")]),
        *notes,
        *(turn if answer.turns else []),
        html.Div([_figure(text, image) for text, image in pictures], className="pictures"),
        *([] if answer.turns else turn),
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
    return html.Article(card, className="card result", **{"aria-label": f"{name}: {said}, {trust}"})


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
    return html.Figure([html.Img(src=serving.data_url(image), alt=text, className=kind), html.Figcaption(text)])


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


def history_table(history: list | None) -> html.Table | html.P:
    """The rows of the session's history, newest first."""
    if not (history := sound(history)):
        return html.P("Nothing yet. What you try is listed here until you close the tab.", className="hint")
    head = html.Tr([html.Th(text, scope="col") for text in ("", "Picture", "Answer", "Sure", "Model")])
    rows = [
        html.Tr(
            [
                html.Td(html.Img(src=row["image"], alt="")),
                html.Td(row["name"], className="name"),
                html.Td([row["answer"], *([" ", html.Span(row["warning"])] if row.get("warning") else [])]),
                html.Td(percent(row["confidence"])),
                html.Td(row["model"]),
            ]
        )
        for row in history
    ]
    return html.Table([html.Thead(head), html.Tbody(rows)])
