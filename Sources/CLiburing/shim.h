// Before liburing.h, which defines _XOPEN_SOURCE: the types of the system's headers stay those that Glibc has.
#include <sys/select.h>
#include <sys/types.h>

#include <liburing.h>
