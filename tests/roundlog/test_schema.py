"""The published columns: complete, documented, and the same as what devices report."""

from dataclasses import fields
from pathlib import Path

import pytest

from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.page import round_log_page
from fibec_ray.roundlog.schema import DEVICES, NONDETERMINISTIC, ROUNDS, TABLES

DOCS = Path(__file__).parents[2] / "docs" / "round-log.md"


@pytest.mark.parametrize("table", TABLES)
def test_every_column_says_its_unit_and_meaning(table):
    for column in TABLES[table]:
        assert set(column.metadata) == {b"unit", b"doc"}
        assert column.metadata[b"doc"]


def test_device_columns_are_the_scalar_fields_of_the_report():
    scalars = {field.name: field.type for field in fields(DeviceReport) if "tuple" not in field.type}
    del scalars["state_digest"]  # a part of update_digest
    assert DEVICES.names == list(scalars)
    for name, annotation in scalars.items():
        assert DEVICES.field(name).nullable == ("None" in annotation), name
        kind = {"int": "int", "float": "double", "str": "string"}[annotation.split(" ")[0]]
        assert str(DEVICES.field(name).type).startswith(kind), name


def test_evaluation_is_nullable_and_costs_are_not():
    for column in ROUNDS:
        if column.name.startswith(("global_", "personal_")):
            assert column.nullable
        if column.name.startswith(("bytes_", "num_samples", "sim_time")):
            assert not column.nullable


def test_nondeterministic_columns_exist():
    assert set(NONDETERMINISTIC) <= set(ROUNDS.names) | set(DEVICES.names)


def test_documentation_is_current():
    assert DOCS.read_text() == round_log_page(), "run: python -m fibec_ray.cli.reference"
