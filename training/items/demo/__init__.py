"""The demo catalogue: a made-up shop with items a person would believe in and planted tastes.

activities.json, styles.json and series.json hold the words; `catalogue.py` makes items of them and
`shop.py` lets users buy. All names are invented.
"""
