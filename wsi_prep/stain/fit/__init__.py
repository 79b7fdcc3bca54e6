"""How the stain classifier of the slide stage is fitted: real tissue, recoloured through other dyes."""
