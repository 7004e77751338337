// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* shared: the maps and types that all probes share. It has no program. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"
#include "headers/histogram.h"

GO_TYPES(struct counter counter; struct share share; enum room room; enum reason reason;
	 struct histograms histograms; enum histogram_bound histogram_bound;
	 enum histograms_by histograms_by;);
