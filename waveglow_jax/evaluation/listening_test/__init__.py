"""A listening test: `make` builds a page that any web host serves, `score` reads its results."""
