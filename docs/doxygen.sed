# Plain comments as Doxygen reads them. The first of a file is about the file; headings of sections
# stay plain; what stands behind code, or goes on under such a comment, is about that code.
1s|^// |/// \\file\n/// |
/^ *\/\/ ----/b
s|^( {0,11})// |\1/// |
s|^( {12,})// |\1///< |
s|^(.*[^ /].*)  // |\1  ///< |
