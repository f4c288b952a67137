# SPDX-License-Identifier: Apache-2.0
"""What is written down: records, pages, figures."""
