"""Operations on nets and weights: shapes, coordinates, crops, deploy forms. numpy only, nothing printed."""
