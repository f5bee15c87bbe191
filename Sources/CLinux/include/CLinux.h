#pragma once
#include "clx_atomics.h"
#include "clx_checksum.h"
#include "clx_net.h"
#include "clx_sandbox.h"
#include "clx_shared.h"
#include "clx_system.h"
#include "clx_uring.h"
