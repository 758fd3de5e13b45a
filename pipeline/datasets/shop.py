"""Sessions in a shop, drawn from a known law: what is looked at, put into the cart and bought within minutes.

A visitor comes with one sub-category in mind and stays near it. Within it, products of their price level and of their
brands are likelier, and popular ones. Customers come with one of the few sub-categories of their taste again and again;
a guest comes once, under a number of their own, and is in no table. Products are added every week, and some sell out.
Everything is drawn from the seed alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modules.errors import UserError
from pipeline.datasets.drawing import activity, load_law, names, save_law, staged

TREE = {
    "bags": ("backpacks", "handbags", "suitcases", "wallets"),
    "garden": ("hoses", "planters", "spades", "sunshades"),
    "home": ("cushions", "lamps", "rugs", "vases"),
    "kitchen": ("kettles", "knives", "mugs", "pans"),
    "shoes": ("boots", "sandals", "sneakers", "slippers"),
    "sports": ("balls", "dumbbells", "mats", "rackets"),
}
"""Category → its sub-categories."""
SUBCATEGORIES = tuple(name for several in TREE.values() for name in several)
PER_CATEGORY = 4
IN_STOCK, SOLD_OUT = "in stock", "sold out"
PRICE_BANDS = ((25, "0-25"), (50, "25-50"), (100, "50-100"), (np.inf, "100+"))
"""Upper end, in euros, and name."""
WEIGHTS = {"view": 1.0, "cart": 3.0, "purchase": 10.0}
"""How much an event counts."""
WEEKS = 26
_START, _WEEK = 1_700_006_400, 7 * 86_400
_BRANDS, _BRANDS_OF_CUSTOMER = 30, 3
_ADJECTIVES = ("blue", "classic", "compact", "green", "large", "light", "red", "robust", "soft", "white")
# Mean of a session's products, the share of guests among sessions, and the least sessions of a customer.
_PRODUCTS, _GUESTS, _MOST = 5.0, 0.5, 10
# Of the products of a session: in the sub-category in mind, in another one of its category, anywhere.
_NEAR = np.array([0.8, 0.15, 0.05])
_CART, _PURCHASE = 0.25, 0.5
# Standard deviation of prices around a visitor's level, in logarithms; how much likelier brands of the taste are.
_LEVEL, _BRAND = 0.35, 4.0
_SOLD_OUT, _SOLD_OUT_WITHIN = 0.1, 8


@dataclass(frozen=True)
class Shop:
    """Where the tables are, and what is in them."""

    directory: str
    interactions: int
    users: int
    """Customers, who are in the table of users."""
    guests: int
    """Sessions of nobody who is known."""
    items: int


@dataclass(frozen=True)
class Law:
    """From what sessions are drawn; U customers, I products."""

    subcategory: np.ndarray
    """[I] positions in `SUBCATEGORIES`."""
    brand: np.ndarray
    """[I] int64."""
    price: np.ndarray
    """[I] euros."""
    level: np.ndarray
    """[I] logarithm of the price over what is usual in the sub-category."""
    appeal: np.ndarray
    """[I] above 0, long-tailed."""
    added: np.ndarray
    """[I] number of a week."""
    sold_out: np.ndarray
    """[I] number of the week from which on it cannot be had; `WEEKS` where it can in the end."""
    taste: np.ndarray
    """[U, 24] how often a customer comes with each sub-category in mind; they add up to 1."""
    budget: np.ndarray
    """[U] the level that a customer likes best."""
    brands: np.ndarray
    """[U, 3] int64 that a customer likes."""

    @classmethod
    def draw(cls, users: int, items: int, seed: int) -> Law:
        """The law of a seed."""
        rng = np.random.default_rng([seed, 0])
        subcategory = rng.permutation(np.arange(items) % len(SUBCATEGORIES))
        brand = rng.integers(0, _BRANDS, items)
        level = rng.normal(0, 0.6, _BRANDS)[brand] + rng.normal(0, 0.25, items)
        usual = rng.lognormal(3.7, 0.5, len(SUBCATEGORIES))
        sells_out = rng.random(items) < _SOLD_OUT
        return cls(
            subcategory=subcategory,
            brand=brand,
            price=np.round(usual[subcategory] * np.exp(level), 2),
            level=level,
            appeal=rng.lognormal(0.0, 1.0, items),
            added=np.where(rng.random(items) < 0.6, 0, rng.integers(1, WEEKS, items)),
            sold_out=np.where(sells_out, WEEKS - rng.integers(1, _SOLD_OUT_WITHIN, items), WEEKS),
            taste=rng.dirichlet(np.full(len(SUBCATEGORIES), 0.08), users),
            budget=rng.normal(0, 0.5, users),
            brands=np.argsort(rng.random((users, _BRANDS)), axis=1)[:, :_BRANDS_OF_CUSTOMER],
        )

    @classmethod
    def load(cls, folder: str) -> Law:
        """The law that a folder's tables were drawn from; customers and products in the order of their tables."""
        return load_law(cls, folder)

    def weights(self, subcategory: int, week: int, budget: float, brands: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How a visitor chooses a product.

        Args:
            subcategory: In mind.
            week: Of the visit.
            budget: The visitor's level of price.
            brands: The visitor's.

        Returns:
            [I] up to a factor, 0 for what is not there; [I] which of `_NEAR` a product belongs to.
        """
        distance = np.where(self.subcategory == subcategory, 0, 2)
        distance[(distance > 0) & (self.subcategory // PER_CATEGORY == subcategory // PER_CATEGORY)] = 1
        fits = np.exp(-((self.level - budget) ** 2) / (2 * _LEVEL**2))
        weights = self.appeal * fits * np.where(np.isin(self.brand, brands), _BRAND, 1.0)
        return np.where((self.added <= week) & (week < self.sold_out), weights, 0.0), distance


def write(users: int, items: int, interactions: int, seed: int, folder: str) -> Shop:
    """Draws the tables: `interactions.parquet`, `items.parquet`, `users.parquet`, and the law as `truth.npz`.

    The same numbers and seed give the same bytes.

    Args:
        users: Customers.
        items: Products; some may be looked at by nobody.
        interactions: Views, carts and purchases in all.
        seed: Of every draw.
        folder: Where to; files of an earlier draw there are replaced when all of the new ones are there.

    Raises:
        UserError: So many interactions do not fit these customers, or the folder cannot be written.
    """
    sessions = -(-interactions // 2)  # More than are needed: the last ones are not drawn.
    customers = int((1 - _GUESTS) * interactions / (2 * _PRODUCTS))
    if users < 1 or customers < users:
        least = int(2 * _PRODUCTS / (1 - _GUESTS))
        raise UserError(f"--interactions: {interactions} are fewer than {least} for each of {users} users")
    law = Law.draw(users, items, seed)
    rng = np.random.default_rng([seed, 1])
    visits = np.repeat(np.arange(users), activity(users, customers, 1, max(2, _MOST * customers // users), rng))
    rows: list[tuple[str, int, int, str]] = []
    guests = 0
    known = iter(rng.permutation(np.resize(visits, sessions)).tolist())
    while len(rows) < interactions:
        customer = next(known) if rng.random() >= _GUESTS else None
        guests += customer is None
        rows += _session(law, customer, f"guest{guests}" if customer is None else f"c{customer}", rng)
    visitor, product, seconds, event = (np.array(column) for column in zip(*rows[:interactions], strict=True))
    order = np.argsort(seconds, kind="stable")
    weight = np.array([WEIGHTS[each] for each in event[order]], np.float32)
    table = pa.table(
        {"visitor_id": visitor[order], "sku": names("p", product[order]), "timestamp": seconds[order].astype(np.int64),
         "event": event[order], "weight": weight}
    )  # fmt: skip
    with staged(folder) as staging:
        save_law(law, staging)
        pq.write_table(_products(law, np.random.default_rng([seed, 2])), os.path.join(staging, "items.parquet"))
        pq.write_table(_customers(law, np.random.default_rng([seed, 3])), os.path.join(staging, "users.parquet"))
        pq.write_table(table, os.path.join(staging, "interactions.parquet"))
    return Shop(folder, interactions, users, guests, items)


def _session(law: Law, customer: int | None, visitor: str, rng: np.random.Generator) -> list[tuple[str, int, int, str]]:
    """(Visitor, product, seconds, event) of one session, in the order of time."""
    start = _START + int(rng.random() * WEEKS * _WEEK)
    week = (start - _START) // _WEEK
    if customer is None:
        subcategory, budget = int(rng.integers(len(SUBCATEGORIES))), rng.normal(0, 0.5)
        brands = rng.integers(0, _BRANDS, _BRANDS_OF_CUSTOMER)
    else:
        subcategory = int(rng.choice(len(SUBCATEGORIES), p=law.taste[customer]))
        budget, brands = law.budget[customer], law.brands[customer]
    weights, distance = law.weights(subcategory, week, budget, brands)
    totals = np.bincount(distance, weights, len(_NEAR))
    likely = weights * np.divide(_NEAR, totals, out=np.zeros(len(_NEAR)), where=totals > 0)[distance]
    count = min(1 + rng.poisson(_PRODUCTS - 1), np.count_nonzero(likely))
    # Without replacement, by the Gumbel-top-k trick.
    with np.errstate(divide="ignore"):
        order = np.argsort(-(np.log(likely) + rng.gumbel(size=len(likely))))[:count]
    rows, clock, cart = [], start, []
    for product in order.tolist():
        rows.append((visitor, product, clock, "view"))
        if rng.random() < _CART:
            clock += int(rng.integers(10, 60))
            rows.append((visitor, product, clock, "cart"))
            cart.append(product)
        clock += int(rng.integers(15, 180))
    if cart and rng.random() < _PURCHASE:
        rows += [(visitor, product, clock, "purchase") for product in cart]
    return rows


def _products(law: Law, rng: np.random.Generator) -> pa.Table:
    subcategory = np.array(SUBCATEGORIES)[law.subcategory]
    adjective = np.array(_ADJECTIVES)[rng.integers(0, len(_ADJECTIVES), len(subcategory))]
    brand = names("brand", law.brand)
    titles = [f"{a} {s} by {b}" for a, s, b in zip(adjective, subcategory, brand.to_pylist(), strict=True)]
    bands = np.array([name for _, name in PRICE_BANDS])
    return pa.table(
        {
            "sku": names("p", np.arange(len(subcategory))),
            "name": titles,
            "category": np.array(tuple(TREE))[law.subcategory // PER_CATEGORY],
            "subcategory": subcategory,
            "brand": brand,
            "price": law.price,
            "price_band": bands[np.searchsorted([end for end, _ in PRICE_BANDS], law.price, side="right")],
            "stock": np.where(law.sold_out < WEEKS, SOLD_OUT, IN_STOCK),
        }
    )


def _customers(law: Law, rng: np.random.Generator) -> pa.Table:
    """Those who buy what is dear are mostly in the club; a third has not said where they live."""
    club = np.where(rng.random(len(law.budget)) < 1 / (1 + np.exp(-4 * law.budget)), "gold", "basic")
    regions = np.array(("east", "north", "south", "west"))[rng.integers(0, 4, len(club))]
    columns = {"customer_id": names("c", np.arange(len(club))), "club": club}
    return pa.table({**columns, "region": pa.array(regions, mask=rng.random(len(club)) < 1 / 3)})
