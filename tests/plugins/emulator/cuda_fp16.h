// See half_types.h.
#pragma once

#include "half_types.h"
#include "tensor_cores.h"
