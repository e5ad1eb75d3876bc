"""The practice cloud: a small marketplace over HTTP on loopback whose machines are real.

`market` is the marketplace, `billing` the meter, `machines` and `machine` the rented computers, `server` the HTTP face, `provider` our
side of it. Run one by hand with `python -m providers.sandbox --folder DIR`.
"""
