/*
 * The one place that includes Python.h, and every difference between Python versions.
 *
 * The extension is compiled for the limited API of 3.10 (setup.py), so that one binary serves 3.10 and all later
 * versions.  What newer versions understand in addition is written here as numbers of the stable ABI and chosen at
 * run time (module.c).
 */
#ifndef DTQ_BINDING_COMPAT_H
#define DTQ_BINDING_COMPAT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

/* Py_mod_multiple_interpreters and Py_MOD_PER_INTERPRETER_GIL_SUPPORTED: known from 3.12 on, refused before. */
#define COMPAT_SLOT_INTERPRETERS 3
#define COMPAT_PER_INTERPRETER_GIL ((void *)2)

/* Py_mod_gil is left out on purpose: the objects rely on the GIL, and a free-threaded interpreter then switches it
 * on at import. */

#endif
