# SPDX-License-Identifier: Apache-2.0
"""Version of the package, in its one place."""

__version__ = "0.1.0"
