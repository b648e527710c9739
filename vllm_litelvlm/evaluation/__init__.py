"""Every method behind one interface: images and questions in, answers and kept tokens out."""
