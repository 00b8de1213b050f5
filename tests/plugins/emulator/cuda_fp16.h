// See half_types.h.
#pragma once

#include "half_types.h"
