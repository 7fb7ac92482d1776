/*
 * Compiler attributes that write a contract into a signature.
 *
 * DTQ_MUST_CHECK  the caller must look at the returned code.
 * DTQ_PRINTF(f,a) argument f is a printf format, its values start at a.
 */
#ifndef DTQ_ATTR_H
#define DTQ_ATTR_H

#if defined(__GNUC__) || defined(__clang__)
#define DTQ_MUST_CHECK __attribute__((warn_unused_result))
#define DTQ_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define DTQ_MUST_CHECK
#define DTQ_PRINTF(f, a)
#endif

#endif
