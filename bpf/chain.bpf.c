// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* chain: the programs that call those of several probes at one tracepoint. */

#include "headers/kernel.h"
#include "headers/chain.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

GO_TYPES(enum chain_place chain_place;);

DEFINE_CHAIN(net_dev_queue);
DEFINE_CHAIN(sk_data_ready);

SEC("tp_btf/net_dev_queue")
int net_dev_queue(__u64 *ctx)
{
	chain_from(ctx, net_dev_queue, 0);
	return 0;
}

SEC("tp_btf/sk_data_ready")
int sk_data_ready(__u64 *ctx)
{
	chain_from(ctx, sk_data_ready, 0);
	return 0;
}
