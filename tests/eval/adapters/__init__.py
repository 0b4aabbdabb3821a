"""Tests of owl2 as a model of other harnesses."""
