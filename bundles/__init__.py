# SPDX-License-Identifier: Apache-2.0
"""Bundle configurations; no Python lives here, packaging needs the file."""
