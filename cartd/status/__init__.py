"""What people see of carts: status documents, estimates of the time to go, events.

:mod:`cartd.status.document` is the contract of all of them.
"""
