"""The federation over a network, by Flower: what is simulated in one process runs here with clients
on other machines.

Nothing here is imported unless it is asked for, and Flower comes with an extra of its own:
``pip install 'bhfl[flower]'``.
"""
